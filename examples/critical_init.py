"""Signal propagation: phase diagram and critical point of a deep network, by theory at infinite
width and as measured.

    python examples/critical_init.py                                               # ReLU
    python examples/critical_init.py --activation erf                              # J decays as 1/l at criticality
    python examples/critical_init.py --activation gelu --norm pre --residual 1      # critical for every sigma
    python examples/critical_init.py --survey                                      # 20 kinds of networks, theory beside measured
    python examples/critical_init.py --sigma-w 1.2 --sigma-b 0.3                   # away from criticality: a correlation length

Blocks are h' = W phi(h) + b + mu h with W_ij ~ Normal(0, sigma_w^2/N), b_i ~ Normal(0, sigma_b^2),
and a norm if asked for. J^{l0,l} is the squared norm of dh^l/dh^l0 by output, chi_J = J^{l,l+1}. At
chi_J = 1 signals and gradients neither vanish nor explode. Networks stray from the theory by
depth/width, and with BatchNorm by 1/batch, which many networks can tell from it. Paper: Doshi, He,
Gromov, Critical Initialization of Wide and Deep Neural Networks using Partial Jacobians, arXiv
2111.12143."""

import time

from tinygrok import cli  # first: it sets up BLAS threads before NumPy loads

import functools  # isort: skip
import math
from dataclasses import replace

import numpy as np

from tinygrok.criticality.jacobian import Propagation, mean_and_error
from tinygrok.criticality.meanfield import MeanField, critical_line, critical_point
from tinygrok.engine.errors import InputError
from tinygrok.engine.rng import generator
from tinygrok.models.vision import NORMS, deep_mlp

critical_point = functools.cache(critical_point)
KINDS = ("identity", "relu", "leaky_relu", "erf", "tanh", "gelu")
QUICK = {"width": 300, "depth": 20, "networks": 12, "grid": 7}
ANY = 1000  # K* where any will do (critical_point)
INPUTS = 256  # entries of an input
FLOOR = 1e-4  # what eps of the norms and float32 can hide: errors count as no smaller, relative to the theory
SURVEY = [
    ("relu", 2, 0),
    ("relu", 1.5, 0.09),
    ("leaky_relu", 2 / 1.0001, 0),
    ("identity", 1, 0),
    ("erf", math.pi / 4, 0),
    ("erf", 1.7562, 0.18414),
    ("tanh", 1, 0),
    ("tanh", 2.5, 0.05),
    ("gelu", 1.983058, 0.172922),
    ("relu", 1.69, 0, 0, "pre"),
    ("erf", 1, 0.104851, 0, "pre"),
    ("relu", 1, 1 / (math.pi - 1), 0, "act"),
    ("relu", 2 * 0.19, 0, 0.9),
    ("erf", 1, 0, 1),
    ("relu", 1.96, 0.09, 1, "pre"),
    ("erf", 1, 0.09, 1, "pre"),
    ("gelu", 3, 0.5, 1, "pre"),
    ("tanh", 0.5, 1, 1, "pre"),
    ("relu", 1.44, 0.09, 1, "post"),
    ("relu", 1, 0, 0.9, "batch"),
]


def arguments(argv=None):
    p = cli.parser("critical_init", __doc__.splitlines()[0])
    p.add_argument("--activation", default="relu", choices=KINDS, help="phi")
    p.add_argument(
        "--norm",
        default="none",
        choices=NORMS,
        help="LayerNorm before or after phi, or after the block; or BatchNorm",
    )
    p.add_argument(
        "--residual",
        type=cli.real(0, 1),
        default=0.0,
        help="strength mu of the residual connections",
    )
    p.add_argument(
        "--width",
        type=cli.integer(2, 10_000),
        default=1000,
        help="width N of the measured networks",
    )
    p.add_argument("--depth", type=cli.integer(4, 1000), default=30, help="blocks")
    p.add_argument("--networks", type=cli.integer(2), default=24, help="networks to average over")
    p.add_argument(
        "--probes",
        type=cli.integer(),
        default=None,
        help="cotangents an input (default: 4, with BatchNorm 1)",
    )
    p.add_argument(
        "--batch",
        type=cli.integer(2),
        default=None,
        help="inputs at a time (default: 8, with BatchNorm 512)",
    )
    p.add_argument(
        "--sigma-w",
        type=cli.real(0, None, True),
        default=None,
        help="where to measure (default: critical)",
    )
    p.add_argument(
        "--sigma-b", type=cli.real(), default=None, help="where to measure (default: critical)"
    )
    p.add_argument(
        "--grid",
        type=cli.integer(2, 100),
        default=11,
        help="points along each axis of the phase diagram",
    )
    p.add_argument(
        "--survey",
        action="store_true",
        help="also measure every kind of network in the paper's tables",
    )
    return cli.parse(p, argv, QUICK)


def effort(args, case):
    """(inputs at a time, probes): BatchNorm's theory is for large batches, and many inputs need few
    probes"""
    batch, probes = (512, 1) if case.norm == "batch" else (8, 4)
    return args.batch or batch, args.probes or probes


def critical(args):
    """(sw2, sb2) of a critical network: the critical point, or K* = 1 on the line; None where there
    is none."""
    if args.norm == "none":
        return critical_point(args.activation, args.residual)[:2] if args.residual < 1 else None
    if args.residual == 1 and args.norm in ("pre", "batch"):  # critical everywhere
        return 2.0, 0.1
    if args.norm == "batch" or (args.residual == 1 and args.norm == "act"):
        return None
    return tuple(float(x) for x in critical_line(args.activation, 1.0, args.norm, args.residual))


def critical_curve(args, axes):
    """chi_J* = 1 in the plane of the phase diagram, None where it is nowhere or everywhere."""
    if args.residual == 1 or args.norm == "batch":
        return None
    sw2, sb2 = critical_line(
        args.activation, np.geomspace(1e-3, 1e3, 400), args.norm, args.residual
    )
    return (
        (sw2[:2], axes[1][[0, -1]]) if np.ptp(sw2) < 1e-9 else (sw2, sb2)
    )  # ReLU: chi_J does not depend on K


@functools.cache
def start(case):
    """K^1: K* at a critical point (GELU's is half-stable: kernels from below stop at another fixed
    point), elsewhere the fixed point, so that depth shows no transient; inputs of variance 1 where
    that is 0, infinite or any number."""
    K = case.fixed_point()
    if case.norm == "none" and case.mu < 1:
        point = critical_point(case.activation, case.mu)
        K = point[2] if np.allclose(point[:2], (case.sw2, case.sb2), rtol=1e-5, atol=0) else K
    return K if 1e-6 < K < ANY else 1.0 + case.sb2 * (case.norm != "batch")


def measure(dev, case, width, depth, batch, probes, rngs, last=None):
    """K^l (networks, depth + 1), chi_J (networks, depth) and J^{l,L} (networks, depth + 1),
    averaged over inputs and probes; with last only chi_J of so many blocks at the end."""
    chain = deep_mlp(INPUTS, width, depth, 1, case.activation, case.norm, case.mu)

    def one(rng):
        x = rng.standard_normal((batch, INPUTS))
        shared = case.sb2 * (case.norm != "batch")
        x *= math.sqrt(INPUTS * (start(case) - shared)) / np.linalg.norm(x, axis=1, keepdims=True)
        weights = (
            chain.init(rng, math.sqrt(case.sw2), math.sqrt(case.sb2), first=1.0)
            | chain.init_buffers()
        )
        weights = {name: dev.to_device(w) for name, w in weights.items()}
        stages = chain.stages(dev, weights)
        run = Propagation(dev, stages[1:-1], stages[0].forward(dev.to_device(x))[0])
        if last:
            return np.mean(
                [run.apjn(rng, probes, k + 1, k)[:, 0].mean() for k in range(depth - last, depth)]
            )
        return run.kernels, run.chi(rng, probes).mean(axis=0), run.apjn(rng, probes).mean(axis=0)

    found = dev.map(one, rngs)
    return np.array(found) if last else tuple(np.array(x) for x in zip(*found, strict=True))


def theory(case, depth):
    """The same three by recursion."""
    K, chi = case.propagate(start(case), depth)
    return K, chi, np.append(np.cumprod(chi[::-1])[::-1], 1.0)


def decays(chi):
    """-ln J^{l,L} a layer from l = L/2 to L, of chi (networks, L) linearised at the mean: a rate
    1/xi, or, times the number of layers over ln(L/l), the exponent zeta of J ~ L^-zeta at this
    depth."""
    mean, half = chi.mean(axis=0), chi.shape[1] // 2
    return 0.0 - (np.log(mean) + chi / mean - 1)[:, half:].mean(axis=1)


def compare(case, found, depth):
    """{quantity: (theory, measured, standard error, deviation in standard errors)}"""
    (K, chi, J), (K_, chi_, J_) = theory(case, depth), found
    rows = {
        f"K^{k + 1}": (K[k], K_[:, k])
        for k in (depth // 4, depth // 2, depth)
        if case.norm != "batch"
    }
    rows |= {f"chi^{k + 1}": (chi[k], chi_[:, k]) for k in (0, depth // 2, depth - 1)}
    rows |= {"mean chi": (chi.mean(), chi_.mean(axis=1))}
    rows |= {f"J^({k + 1},{depth + 1})": (J[k], J_[:, k]) for k in (0, depth // 2, 3 * depth // 4)}
    layers = (depth - depth // 2) / math.log(depth / (depth // 2))
    rows |= {"-d ln J/d ln l": (layers * decays(chi[None])[0], layers * decays(chi_))}
    rows |= {"-d ln J/dl": (decays(chi[None])[0], decays(chi_))}
    table = {}
    for name, (expected, samples) in rows.items():
        mean, error = (float(x) for x in mean_and_error(samples))
        table[name] = (
            float(expected),
            mean,
            error,
            (mean - expected) / max(error, FLOOR * abs(expected), 1e-9),
        )
    return table


def show(title, table):
    print(f"\n{title:<44}{'theory':>12}{'measured':>12}{'error':>10}{'sigmas':>8}")
    for name, row in table.items():
        print(f"  {name:<42}{row[0]:>12.5g}{row[1]:>12.5g}{row[2]:>10.2g}{row[3]:>8.2f}")


def critical_table():
    """Without a norm the critical point and its exponent; the slope sb2/sw2 of the critical line
    with LayerNorm; chi_J with BatchNorm; and rho = -zeta of LayerNorm with mu = 1 at sb2 = 0."""
    table = {}
    for kind in (*KINDS, "silu"):
        (sw2, sb2, K), batchnorm = critical_point(kind), MeanField(kind, 1.0, norm="batch")
        line, residual = critical_line(kind, 1.0, "pre"), MeanField(kind, 2.0, 0.0, 1.0, "pre")
        zeta, chi = (
            MeanField(kind, sw2, sb2).exponent(K or 1.0),
            batchnorm.step(batchnorm.fixed_point())[1],
        )
        row = dict(
            sw2=sw2,
            sb2=sb2,
            K=K,
            zeta=zeta,
            LN_slope=line[1] / line[0],
            BN_chi=chi,
            LN_res_rho=-residual.exponent(),
        )
        table[kind] = {name: float(x) for name, x in row.items()}
    return table


def phase_diagram(args, dev, base):
    """chi_J of the last blocks over (sw2, sb2): theory and small networks."""
    sw2, sb2 = np.linspace(0.25, 4, args.grid), np.linspace(0, 1, args.grid)
    width, depth, last = max(args.width // 4, 20), min(max(args.depth // 2, 4), 30), 3
    progress, measured = cli.Progress(args.grid**2, unit="point"), np.zeros((args.grid, args.grid))
    expected, rngs = np.zeros_like(measured), generator(args.seed, "probes").spawn(args.grid**2)
    for n, (i, j) in enumerate(np.ndindex(measured.shape)):
        case = replace(base, sw2=float(sw2[j]), sb2=float(sb2[i]))
        measured[i, j] = measure(
            dev, case, width, depth, *effort(args, case), rngs[n].spawn(2), last
        ).mean()
        expected[i, j] = theory(case, depth)[1][-last:].mean()
        progress(
            n + 1,
            f"sw2 {case.sw2:.3g}, sb2 {case.sb2:.3g}: chi {measured[i, j]:.3f}, theory {expected[i, j]:.3f}",
        )
    progress.close()
    return {
        "theory, infinite width": expected,
        f"measured, width {width}, depth {depth}": measured,
    }, (sw2, sb2)


def survey(args, dev):
    """{case: comparison} for every case of SURVEY."""
    tables, rngs = {}, generator(args.seed, "batches").spawn(len(SURVEY))
    for values, rng in zip(SURVEY, rngs, strict=True):
        case = MeanField(*values)
        found = measure(
            dev, case, args.width, args.depth, *effort(args, case), rng.spawn(args.networks)
        )
        name = f"{case.activation} {case.norm} sw2 {case.sw2:.4g} sb2 {case.sb2:.4g} mu {case.mu:g}"
        tables[name] = compare(case, found, args.depth)
        show(name, tables[name])
    return tables


def main(argv=None):
    args = arguments(argv)
    dev = cli.device(args)
    began, at = time.perf_counter(), critical(args)
    sw2, sb2 = at or (1.0, 0.0)
    sw2, sb2 = (
        args.sigma_w**2 if args.sigma_w else sw2,
        sb2 if args.sigma_b is None else args.sigma_b**2,
    )
    case = MeanField(args.activation, sw2, sb2, args.residual, args.norm)
    if not np.all(abs(np.log(theory(case, args.depth)[0])) < 60):
        raise InputError(
            "the kernel K leaves 1e-26..1e26 within --depth blocks: choose fewer, or another --sigma-w"
        )
    if start(case) < case.sb2 and args.norm != "batch":
        raise InputError(
            f"the networks start at K = {start(case):.4g}, less than sigma_b^2: choose a smaller --sigma-b"
        )
    out, points = cli.output_folder(args), critical_table()
    print(f"\n{'':<14}" + "".join(f"{name:>11}" for name in points["relu"]))
    for kind, row in points.items():
        print(
            f"{kind:<14}"
            + "".join(f"{x:>11.6f}" if x != ANY else f"{'any':>11}" for x in row.values())
        )
    rngs = generator(args.seed, "init").spawn(args.networks)
    found = measure(dev, case, args.width, args.depth, *effort(args, case), rngs)
    table = compare(case, found, args.depth)
    title = f"{args.activation}, norm: {args.norm}, $\\mu$ = {args.residual:g}, "
    title += f"$\\sigma_w^2$ = {sw2:.4g}, $\\sigma_b^2$ = {sb2:.4g}"
    show(f"{args.activation} {args.norm} sw2 {sw2:.4g} sb2 {sb2:.4g} mu {args.residual:g}", table)
    maps, axes = phase_diagram(args, dev, case)
    tables = survey(args, dev) if args.survey else {}
    deviations = [abs(row[3]) for t in (table, *tables.values()) for row in t.values()]
    zeta = case.exponent(start(case))
    results = {
        "sigma_w_critical": math.sqrt(at[0]) if at else None,
        "sigma_b_critical": math.sqrt(at[1]) if at else None,
        "chi_theory": table["mean chi"][0],
        "chi_measured": table["mean chi"][1],
        "exponent_theory": zeta
        if math.isfinite(zeta)
        else None,  # None: exponential, or a stretched one
        "exponent_theory_at_depth": table["-d ln J/d ln l"][0],
        "exponent_measured": table["-d ln J/d ln l"][1],
        "exponent_error": table["-d ln J/d ln l"][2],
        "correlation_length_theory": case.correlation_length(start(case)),
        "correlation_length_measured": None
        if math.isfinite(zeta)
        else 1 / abs(table["-d ln J/dl"][1]),
        "phase_diagram_rms": float(np.sqrt(np.mean((np.divide(*maps.values()) - 1) ** 2))),
        "largest_deviation": max(deviations),
        "within_three_errors": float(np.mean(np.array(deviations) <= 3)),
    }
    expected, layers = theory(case, args.depth), np.arange(1, args.depth + 2)
    profiles = {
        name: (layers[: len(x)], x, *mean_and_error(samples))
        for name, x, samples in zip(("K", "chi_J", "J"), expected, found, strict=True)
    }
    log = {"layer": layers[:-1]}
    for name, columns in profiles.items():
        for kind, column in zip(("theory", "measured", "error"), columns[1:], strict=True):
            log[f"{name}_{kind}"] = column[: args.depth]
    cli.write_log(out, log)
    cli.write_run(
        out,
        args,
        dev,
        time.perf_counter() - began,
        results | {"critical_points": points, "table": table} | tables,
    )
    if cli.plotting(args):
        from tinygrok.plots import partial_jacobians as plots

        power = math.isfinite(zeta)
        at_depth, measured, error, _ = table["-d ln J/d ln l" if power else "-d ln J/dl"]
        fit = f"{'exponent' if power else 'decay a layer'} {measured:.3f} $\\pm$ {error:.3f}\ntheory {at_depth:.3f}"
        fit += f", at infinite depth {zeta:.3g}" if power else ""
        names = {
            "K": "kernel $K^l$",
            "chi_J": "$\\chi_J^l = J^{l,l+1}$",
            "J": f"$J^{{l,{args.depth + 1}}}$: {fit}",
        }
        if args.norm == "batch":  # the theory's K is the variance over the batch
            del names["K"]
        shown = {names[name]: profiles[name] for name in names}
        line = critical_curve(args, axes)
        plots.critical_init(
            maps, axes, line, (sw2, sb2), shown, title, out / "critical_init.png", power
        )
    cli.report(out, results, {}, "")


if __name__ == "__main__":
    cli.main(main)
