"""Phase diagram and critical point of deep networks: theory at infinite width beside measurements.

    python examples/critical_init.py                         # ReLU
    python examples/critical_init.py --activation erf        # J decays as 1/l at criticality
    python examples/critical_init.py --activation gelu --norm pre --residual 1   # always critical
    python examples/critical_init.py --survey                # 20 kinds of networks beside theory
    python examples/critical_init.py --sigma-w 1.2 --sigma-b 0.3     # off: a correlation length

Blocks are h' = W phi(h) + b + mu h with W_ij ~ Normal(0, sigma_w^2/N), b_i ~ Normal(0, sigma_b^2),
and a norm if asked for. J^{l0,l} is the squared norm of dh^l/dh^l0 by output, chi_J = J^{l,l+1}. At
chi_J = 1 signals and gradients neither vanish nor explode. Networks stray from the theory by
depth/width, and with BatchNorm by 1/batch, which many networks can tell from it. Paper: Doshi, He,
Gromov, Critical Initialization of Wide and Deep Neural Networks using Partial Jacobians, arXiv
2111.12143.
"""

from tinygrok import cli  # first: it sets up BLAS threads before NumPy loads

import _memory as memory  # isort: skip
import math  # isort: skip
from dataclasses import replace

import _critical_networks as finite
import numpy as np
from _critical_survey import SURVEY
from _kept import kept

from tinygrok.criticality.jacobian import mean_and_error
from tinygrok.criticality.meanfield import MeanField, critical_line, critical_point
from tinygrok.engine.errors import InputError
from tinygrok.engine.rng import generator
from tinygrok.models.vision import NORMS

KINDS = ("identity", "relu", "leaky_relu", "erf", "tanh", "gelu")
QUICK = {"width": 300, "depth": 20, "networks": 12, "grid": 7}


def arguments(argv=None):
    p = cli.parser("critical_init", __doc__)
    add = p.add_argument
    add("--activation", default="relu", choices=KINDS, help="phi")
    add("--norm", default="none", choices=NORMS, help="LayerNorm of h, phi or block, or BatchNorm")
    add("--residual", type=cli.real(0, 1), default=0.0, help="strength mu of the connections")
    add("--width", type=cli.integer(2, 10_000), default=1000, help="width N of measured networks")
    add("--depth", type=cli.integer(4, 1000), default=30, help="blocks")
    add("--networks", type=cli.integer(2, 10**4), default=24, help="networks to average over")
    add("--probes", type=cli.integer(1, 1000), help="an input (default: 4, with BatchNorm 1)")
    add("--batch", type=cli.integer(2, 10**5), help="inputs (default: 8, with BatchNorm 512)")
    add("--sigma-w", type=cli.positive(), help="where to measure (default: critical)")
    add("--sigma-b", type=cli.real(), help="where to measure (default: critical)")
    add("--grid", type=cli.integer(2, 100), default=11, help="points on an axis of the diagram")
    add("--survey", action="store_true", help="also measure every kind in the paper's tables")
    add("--resume", action="store_true", help="keep what is measured in --out, measure the rest")
    return cli.parse(p, argv, QUICK)


def critical(args):
    """(sw2, sb2) of a critical network: the critical point, or K* = 1 on the line.

    None where there is none.
    """
    if args.norm == "none":
        return critical_point(args.activation, args.residual)[:2] if args.residual < 1 else None
    if args.residual == 1 and args.norm in ("pre", "batch"):  # critical everywhere
        return 2.0, 0.1
    if args.norm == "batch" or (args.residual == 1 and args.norm == "act"):
        return None
    return tuple(float(x) for x in critical_line(args.activation, 1.0, args.norm, args.residual))


def kind_of_network(args, at):
    """The networks to measure; refuses what float32 or the first layer cannot hold."""
    sw2, sb2 = at or (1.0, 0.0)
    sw2 = sw2 if args.sigma_w is None else args.sigma_w**2
    sb2 = sb2 if args.sigma_b is None else args.sigma_b**2
    case = MeanField(args.activation, sw2, sb2, args.residual, args.norm)
    with np.errstate(all="ignore"):  # what it would warn of is refused
        K = finite.theory(case, args.depth).K
        logs = np.log(K)
    if not np.all(abs(logs) < 60):
        raise InputError("K leaves 1e-26..1e26 within --depth blocks: choose another --sigma-w")
    if K[0] < finite.shared_variance(case):
        raise InputError(f"K starts at {K[0]:.4g}, below sigma_b^2: choose a smaller --sigma-b")
    return case


def critical_curve(args, axes):
    """chi_J* = 1 in the plane of the phase diagram, None where it is nowhere or everywhere."""
    if args.residual == 1 or args.norm == "batch":
        return None
    K = np.geomspace(1e-3, 1e3, 400)
    sw2, sb2 = critical_line(args.activation, K, args.norm, args.residual)
    if np.ptp(sw2) < 1e-9:  # ReLU: chi_J does not depend on K
        return sw2[:2], axes[1][[0, -1]]
    return sw2, sb2


def critical_table():
    """Numbers of every activation, printed: without a norm the critical point and its exponent.

    With LayerNorm the slope sb2/sw2 of the critical line; with BatchNorm chi_J; and rho = -zeta of
    LayerNorm with mu = 1 at sb2 = 0.
    """
    table = {}
    for kind in (*KINDS, "silu"):
        sw2, sb2, K = critical_point(kind)
        line = critical_line(kind, 1.0, "pre")
        batchnorm = MeanField(kind, 1.0, norm="batch")
        row = {
            "sw2": sw2,
            "sb2": sb2,
            "K": K,
            "zeta": MeanField(kind, sw2, sb2).exponent(K or 1.0),
            "LN_slope": line[1] / line[0],
            "BN_chi": batchnorm.step(batchnorm.fixed_point())[1],
            "LN_res_rho": -MeanField(kind, 2.0, 0.0, 1.0, "pre").exponent(),
        }
        table[kind] = {name: float(x) for name, x in row.items()}
    print(f"\n{'':<14}" + "".join(f"{name:>11}" for name in table["relu"]))
    for kind, row in table.items():
        texts = [f"{x:>11.6f}" if x != finite.ANY else f"{'any':>11}" for x in row.values()]
        print(f"{kind:<14}" + "".join(texts))
    return table


def effort(args, case):
    """(inputs at a time, probes): BatchNorm's theory is for large batches; they need few probes"""
    batch, probes = (512, 1) if case.norm == "batch" else (8, 4)
    return args.batch or batch, args.probes or probes


def compared(args, dev, case, rngs):
    """Measured profiles, and {quantity: (theory, measured, error, deviation)}, printed."""
    found = finite.measure(dev, case, args.width, args.depth, *effort(args, case), rngs)
    table = finite.compare(case, found, args.depth)
    name = f"{case.activation} {case.norm} sw2 {case.sw2:.4g} sb2 {case.sb2:.4g} mu {case.mu:g}"
    print(f"\n{name:<44}{'theory':>12}{'measured':>12}{'error':>10}{'sigmas':>8}")
    for quantity, row in table.items():
        print(f"  {quantity:<42}{row[0]:>12.5g}{row[1]:>12.5g}{row[2]:>10.2g}{row[3]:>8.2f}")
    return found, {name: table}


def phase_diagram(args, dev, base, folder):
    """{title: chi_J of the last blocks over (sw2, sb2)}, by theory and of small networks; axes."""
    sw2 = np.linspace(0.25, 4, args.grid)
    sb2 = np.linspace(0, 1, args.grid)
    width = max(args.width // 4, 20)
    depth = min(max(args.depth // 2, 4), 30)
    last = 3
    expected = np.zeros((args.grid, args.grid))
    measured = np.zeros_like(expected)
    rngs = generator(args.seed, "probes").spawn(args.grid**2)
    progress = cli.Progress(args.grid**2, unit="point")
    for n, (i, j) in enumerate(np.ndindex(measured.shape)):
        case = replace(base, sw2=float(sw2[j]), sb2=float(sb2[i]))
        size = (width, depth, *effort(args, case))
        how = (dev, case, *size, rngs[n].spawn(2), last)
        measured[i, j] = kept(folder / f"point-{n}.json", finite.measure_last, *how)
        expected[i, j] = finite.theory(case, depth).chi[-last:].mean()
        chi = f"chi {measured[i, j]:.3f}, theory {expected[i, j]:.3f}"
        progress(n + 1, f"sw2 {case.sw2:.3g}, sb2 {case.sb2:.3g}: {chi}")
    progress.close()
    title = f"measured, width {width}, depth {depth}"
    return {"theory, infinite width": expected, title: measured}, (sw2, sb2)


def survey(args, dev, folder):
    """{case: comparison} for every case of SURVEY."""
    tables = {}
    rngs = generator(args.seed, "batches").spawn(len(SURVEY))
    for i, (values, rng) in enumerate(zip(SURVEY, rngs, strict=True)):
        what = (args, dev, MeanField(*values), rng.spawn(args.networks))
        tables |= kept(folder / f"survey-{i}.json", compared, *what)[1]
    return tables


def measured_numbers(case, at, tables, maps):
    """What is reported of the networks (the first table), the survey and the phase diagram."""
    table = tables[0]
    deviations = []
    for rows in tables:
        deviations += [abs(row[3]) for row in rows.values()]
    start = finite.start(case)
    zeta = case.exponent(start)
    power = math.isfinite(zeta)  # else J is an exponential, or a stretched one
    expected, measured, error, _ = table["-d ln J/d ln l"]
    theory_map, measured_map = maps.values()
    return {
        "sigma_w_critical": math.sqrt(at[0]) if at else None,
        "sigma_b_critical": math.sqrt(at[1]) if at else None,
        "chi_theory": table["mean chi"][0],
        "chi_measured": table["mean chi"][1],
        "exponent_theory": zeta if power else None,
        "exponent_theory_at_depth": expected,
        "exponent_measured": measured,
        "exponent_error": error,
        "correlation_length_theory": case.correlation_length(start),
        "correlation_length_measured": None if power else 1 / abs(table["-d ln J/dl"][1]),
        "phase_diagram_rms": float(np.sqrt(np.mean((theory_map / measured_map - 1) ** 2))),
        "largest_deviation": max(deviations),
        "within_three_errors": float(np.mean(np.array(deviations) <= 3)),
    }


def against_depth(case, found, depth):
    """{quantity: (layers, theory, mean, standard error)}, and the same as columns of log.csv."""
    layers = np.arange(1, depth + 2)
    profiles = {}
    log = {"layer": layers[:-1]}
    expected = finite.theory(case, depth)
    for name, curve, samples in zip(("K", "chi_J", "J"), expected, found, strict=True):
        mean, error = mean_and_error(samples)
        profiles[name] = (layers[: len(curve)], curve, mean, error)
        log[f"{name}_theory"] = curve[:depth]
        log[f"{name}_measured"] = mean[:depth]
        log[f"{name}_error"] = error[:depth]
    return profiles, log


def main(argv=None):
    args = arguments(argv)
    experiment = cli.Experiment(args)
    at = critical(args)
    case = kind_of_network(args, at)
    memory.require(experiment.dev, **memory.propagation(experiment.dev, args))
    folder = experiment.open_sweep(free=("survey",)) / cli.PACKS
    points = critical_table()
    rngs = generator(args.seed, "init").spawn(args.networks)
    found, tables = compared(args, experiment.dev, case, rngs)
    (table,) = tables.values()
    maps, axes = phase_diagram(args, experiment.dev, case, folder)
    others = survey(args, experiment.dev, folder) if args.survey else {}
    results = measured_numbers(case, at, [table, *others.values()], maps)
    profiles, log = against_depth(case, found, args.depth)

    def figures(out):
        import _figures_partial_jacobians as plots

        line = critical_curve(args, axes)
        zeta = results["exponent_theory"]
        path = out / "critical_init.png"
        plots.critical_init(case, maps, axes, line, profiles, table, zeta, path)

    record = results | {"critical_points": points, "table": table} | others
    experiment.finish(record, log, figures, shown=results)


if __name__ == "__main__":
    cli.main(main)
