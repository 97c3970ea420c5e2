"""How many numbers a transformer must see before it predicts an LCG, against the modulus: N ~
m^gamma, with its uncertainty.

    python examples/lcg_scaling.py --quick                       # m = 48, 54, 64: under a minute
    python examples/lcg_scaling.py --workers 2                   # m = 64 ... 1024, an hour on two cores; --resume goes on
    python examples/lcg_scaling.py --depth 2 --moduli 64 128 256 512

One network a modulus (and seed), trained as examples/predict_lcg.py does. N is measured three ways:
the numbers in context from which the accuracy stays above 60 % and above 90 %, which are powers of
two mostly, and one more than the mean number of numbers answered wrongly before the accuracy
reaches its final level, which is smooth. The same for the classical look-back predictors: order n
is right once r^n >= m 2^(s - n s) with n r numbers in context, so that its N grows as m^(1/n).
Paper: Tao, Doshi, Kalra, He, Barkeshli, arXiv 2502.10390, section on scaling."""

import functools
import json
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor

from tinygrok import cli  # first: it sets up BLAS threads before NumPy loads

import numpy as np  # isort: skip

import predict_lcg

from tinygrok.engine.device import get_device
from tinygrok.tasks import lcg
from tinygrok.training.checkpoint import check_config
from tinygrok.training.loop import fit
from tinygrok.training.sweep import SweepError, exit_with_parent, sweep

QUICK = {"moduli": [48, 54, 64], "steps": 1400}
PREDICTORS = ("transformer", "look-back order 2", "look-back order 3")
QUANTITIES = {
    "numbers_to_60": "N(60 %)",
    "numbers_to_90": "N(90 %)",
    "wrong": "numbers answered wrongly",
}


def arguments(argv=None):
    p = cli.parser(
        "lcg_scaling", "Numbers in context that a transformer needs, against the modulus."
    )
    moduli = [64, 128, 256, 512, 1024]
    p.add_argument(
        "--moduli",
        type=cli.integer(33, 2**16),
        nargs="+",
        default=moduli,
        help="fixed moduli, a network each",
    )
    p.add_argument(
        "--seeds", type=cli.integer(), default=1, help="networks a modulus: --seed, --seed + 1, ..."
    )
    p.add_argument("--depth", type=cli.integer(), default=1, help="blocks")
    p.add_argument(
        "--steps",
        type=cli.integer(),
        default=1500,
        help="optimiser steps at m = 64; (m/64)^(1/2) times as many at m",
    )
    p.add_argument(
        "--workers",
        type=cli.integer(0),
        default=0,
        help="processes (0: this one, with all its threads)",
    )
    p.add_argument(
        "--resume",
        action="store_true",
        help="keep the finished networks in --out and run the others",
    )
    args = cli.parse(p, argv, QUICK)
    if len(set(args.moduli)) < max(len(args.moduli), 2):
        raise cli.InputError("--moduli: every modulus once, and at least two")
    for m in args.moduli:
        lcg.multipliers(m)  # refuse a modulus without multipliers of full period now
    return args


def point(args, m, seed):
    """The flags of predict_lcg for a modulus: a context of four to eight times the square root of
    m."""
    context = 2 ** int(np.ceil(np.log2(4 * m**0.5)))
    flags = {
        "modulus": m,
        "context": context,
        "depth": args.depth,
        "steps": round(args.steps * (m / 64) ** 0.5),
        "seed": seed,
    }
    few = min(
        m // 8, len(lcg.multipliers(m)) // 2 + 1
    )  # some multipliers of full period are left to train on
    flags |= {"width": 64, "lr": 3e-3, "test_draws": few} if m <= 64 else {"width": 128, "lr": 2e-3}
    return flags | {"dtype": args.dtype}


def train(pack, device, threads):
    """Accuracy by numbers in context of every predictor of a pack of points, each on its own
    network's test sequences."""
    results = []
    for flags in pack:
        words = [
            text
            for key, value in flags.items()
            for text in (f"--{key.replace('_', '-')}", str(value))
        ]
        options = predict_lcg.arguments(words)
        data, tests, run = predict_lcg.build(options, get_device(device, flags["dtype"], threads))
        began = time.perf_counter()
        fit(run, options.steps, max(options.steps // 10, 1))
        ((name, (x, _)),) = tests.items()
        curves = {"transformer": run.history[f"{name}_numbers"][-1]}
        curves |= {
            k: (lcg.SOLVERS[k](x[:, :-1], flags["modulus"]) == x[:, 1:]).mean(axis=0)
            for k in PREDICTORS[1:]
        }
        progress = [float(row[-8:].mean()) for row in run.history[f"{name}_numbers"]]
        seconds = time.perf_counter() - began
        results.append(
            {
                "curves": {k: c.tolist() for k, c in curves.items()},
                "progress": progress,
                "seconds": seconds,
            }
        )
    return results


def measure(curve):
    """The three measures of a curve (T,); None where a level is not kept."""
    curve = np.asarray(curve)
    plateau = curve[
        -8:
    ].mean()  # errors that no context mends would grow with the length of the context
    wrong = 1 + float(np.maximum(1 - curve / plateau, 0).sum()) if plateau > 0.9 else None
    return {
        "numbers_to_60": lcg.elements_needed(curve, 0.6),
        "numbers_to_90": lcg.elements_needed(curve, 0.9),
        "wrong": wrong,
    }


def power_law(m, n):
    """(gamma, its standard error) of log n = gamma log m + const by least squares: the scatter
    about the line, without the coarseness of an N that is a power of two. Networks without a value
    are left out; None for fewer than three, or moduli within a factor of four."""
    use = [i for i, value in enumerate(n) if value]
    if len(use) < 3 or max(m[i] for i in use) < 4 * min(m[i] for i in use):
        return None, None
    x, y = np.log(np.asarray(m, float)[use]), np.log(np.asarray([n[i] for i in use], float))
    x, y = x - x.mean(), y - y.mean()
    gamma = (x @ y) / (x @ x)
    return float(gamma), float(np.sqrt(((y - gamma * x) ** 2).sum() / (len(use) - 2) / (x @ x)))


def main(argv=None):
    args = arguments(argv)
    dev = cli.device(args)
    points = [
        point(args, m, args.seed + s)
        for m in sorted(args.moduli, reverse=True)
        for s in range(args.seeds)
    ]  # slow first
    out = cli.output_folder(args, args.resume, "config.json")
    settings = json.loads(json.dumps(cli.config(args)))
    if args.resume:
        check_config(
            out, json.loads((out / "config.json").read_text()), settings, free=("moduli", "seeds")
        )
    cli.write_json(out / "config.json", settings)
    executor = None
    if args.workers:
        spawn = multiprocessing.get_context("spawn")
        executor = functools.partial(
            ProcessPoolExecutor, args.workers, mp_context=spawn, initializer=exit_with_parent
        )
    began, progress = time.perf_counter(), cli.Progress(len(points), every=10.0, unit="network")
    run = functools.partial(train, device=args.device, threads=1 if args.workers else args.threads)
    try:
        packs = sweep(
            [[p] for p in points],
            run,
            out / "packs",
            executor,
            lambda done, total: progress(done, "trained"),
        )
    except (SweepError, KeyboardInterrupt) as error:
        why = str(error) or "interrupted"
        print(
            f"stopped: {why}; finished networks are in {out / 'packs'}. To go on:\n  {cli.resume_hint()}"
        )
        if isinstance(error, KeyboardInterrupt):
            os._exit(130)  # worker processes notice and end; waiting for them could take long
        return 1
    progress.close()
    rows = sorted(
        zip(points, (p[0] for p in packs), strict=True),
        key=lambda row: (row[0]["modulus"], row[0]["seed"]),
    )
    moduli, results = [p["modulus"] for p, _ in rows], {}
    for name in PREDICTORS:
        measured = [measure(r["curves"][name]) for _, r in rows]
        for quantity in QUANTITIES:
            values = [row[quantity] for row in measured]
            gamma, error = power_law(moduli, values)
            results |= {
                f"{name}: {quantity}": values,
                f"{name}: exponent_{quantity}": gamma,
                f"{name}: error_{quantity}": error,
            }
    results |= {"moduli": moduli, "accuracy_last": [r["progress"][-1] for _, r in rows]}
    results |= {"seconds": [r["seconds"] for _, r in rows]}
    columns = {f"{name}: {q}": results[f"{name}: {q}"] for name in PREDICTORS for q in QUANTITIES}
    columns = {k: [np.nan if v is None else v for v in values] for k, values in columns.items()}
    cli.write_log(out, {"modulus": moduli, "seed": [p["seed"] for p, _ in rows], **columns})
    cli.write_run(out, args, dev, time.perf_counter() - began, results)
    if cli.plotting(args):
        from tinygrok.plots import lcg as plots

        curves = {f"{p['modulus']}, seed {p['seed']}": r["curves"]["transformer"] for p, r in rows}
        fits = {
            name: (columns[f"{name}: wrong"], results[f"{name}: exponent_wrong"])
            for name in PREDICTORS
        }
        plots.scaling(curves, moduli, fits, out / "lcg_scaling.png")
    paper = {"transformer: exponent_numbers_to_60": "0.24 (recalled; many layers, to m = 2^32)"}
    cli.report(
        out,
        {k: v if v is not None else "too few moduli" for k, v in results.items()},
        paper,
        "paper",
    )


if __name__ == "__main__":
    cli.main(main)
