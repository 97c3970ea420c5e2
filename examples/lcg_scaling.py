"""How many numbers a transformer must see before it predicts an LCG, against the modulus.

    python examples/lcg_scaling.py --quick          # m = 16, 32, 64: under a minute
    python examples/lcg_scaling.py --workers 2      # m = 128 ... 1024, 20 minutes; --resume goes on
    python examples/lcg_scaling.py --depth 2 --moduli 128 256 512

N ~ m^gamma, with its uncertainty. One network a modulus (and seed), trained as
examples/predict_lcg.py does, above m = 64 as its --preset 2048. N is measured three ways: the
numbers in context from which the accuracy stays above 60 % and above 90 %, which are powers of two
mostly, and one more than the mean number of numbers answered wrongly before the accuracy reaches
its final level, which is smooth. The same for the classical look-back predictors: order n is right
once r^n >= m 2^(s - n s) with n r numbers in context, so that its N grows as m^(1/n). Paper: Tao,
Doshi, Kalra, He, Barkeshli, arXiv 2502.10390, section on scaling."""

import functools
import time

from tinygrok import cli  # first: it sets up BLAS threads before NumPy loads

import _memory as memory  # isort: skip
import _packs  # isort: skip
import numpy as np  # isort: skip

import _figures_lcg as plots
import predict_lcg
from _lcg_answers import LAST, elements_needed
from _lcg_presets import PRESETS

from tinygrok.engine.device import get_device
from tinygrok.tasks import lcg
from tinygrok.training.checkpoint import fit_in_pack

QUICK = {"moduli": [16, 32, 64], "steps": 560}
SMALL = 64  # up to this modulus the defaults of predict_lcg do
LONGER = 2.5  # times as many steps are taken up to there: they learn more slowly
TOKENS = 6144  # of a step above
PREDICTORS = ("transformer", "look-back order 2", "look-back order 3")
QUANTITIES = ("numbers_to_60", "numbers_to_90", "wrong")
PAPER = {"transformer: exponent_numbers_to_60": "0.24 (recalled; many layers, to m = 2^32)"}


def arguments(argv=None):
    p = cli.parser("lcg_scaling", __doc__)
    add = p.add_argument
    count = cli.integer()
    modulus = cli.integer(16, 2**16)
    moduli = [128, 256, 512, 1024]
    seeds = "networks a modulus: --seed, --seed + 1, ..."
    steps = f"optimiser steps, times (m/64)^(1/2), and up to m = {SMALL} times {LONGER}"
    add("--moduli", type=modulus, nargs="+", default=moduli, help="fixed moduli, a network each")
    add("--seeds", type=cli.integer(1, 1000), default=1, help=seeds)
    add("--depth", type=cli.integer(1, 1000), default=1, help="blocks")
    add("--steps", type=count, default=550, help=steps)
    _packs.add_sweep(add, what="networks")
    args = cli.parse(p, argv, QUICK)
    if len(set(args.moduli)) < max(len(args.moduli), 2):
        raise cli.InputError("--moduli: every modulus once, and at least two")
    for m in args.moduli:
        candidates = lcg.multipliers(m)  # refuses a modulus without any
        if m > SMALL and len(candidates) < 2:
            raise cli.InputError(f"--moduli: {m} has one multiplier of full period, two are needed")
    return args


def point(args, m, seed):
    """The flags of predict_lcg for a modulus: a context of four to eight times the square root of
    m, and shorter than the period, so that nothing can be copied from one period ago."""
    candidates = len(lcg.multipliers(m))
    context = min(2 ** int(np.ceil(np.log2(4 * m**0.5))), m - 1)
    flags = {"modulus": m, "seed": seed, "depth": args.depth, "dtype": args.dtype}
    flags["context"] = context
    longer = LONGER if m <= SMALL else 1
    flags["steps"] = max(1, round(longer * args.steps * (m / 64) ** 0.5))
    if m > SMALL:
        flags["batch"] = max(1, TOKENS // context)
        # At most half of the multipliers are tested, the others are trained on.
        flags["test_draws"] = min(64, candidates // 2)
        return PRESETS["2048"] | flags
    flags |= {"width": 64, "lr": 3e-3}
    # Two multipliers of full period are left to train on, where there are so many.
    flags["test_draws"] = max(1, min(m // 8, candidates - 2))
    return flags


def options_of(flags):
    """The options of predict_lcg for a point."""
    return predict_lcg.arguments(cli.words(flags))


def require(args, dev):
    """Refuse a point that predict_lcg refuses, or that does not fit into memory, before the first
    is trained."""
    last = args.seed + args.seeds - 1
    needs = []
    for m in args.moduli:
        options = options_of(point(args, m, last))
        needs.append(memory.numbers(dev, options, max(1, args.workers)))
    memory.require(dev, **max(needs, key=lambda parts: sum(parts.values())))


def train_one(flags, folder, device, **settings):
    """Accuracy by numbers in context of every predictor of a point, on the test sequences of its
    network."""
    options = options_of(flags)
    dev = get_device(device, flags["dtype"], **settings)
    _, tests, run = predict_lcg.build(options, dev)
    began = time.perf_counter()
    fit_in_pack(run, [flags], folder, options.steps, max(options.steps // 10, 1))
    ((name, (numbers, _)),) = tests.items()
    history = run.history[f"{name}_numbers"]
    curves = {"transformer": history[-1].tolist()}
    for solver in PREDICTORS[1:]:
        right = lcg.SOLVERS[solver](numbers[:, :-1], flags["modulus"]) == numbers[:, 1:]
        curves[solver] = right.mean(axis=0).tolist()
    progress = [float(row[-LAST:].mean()) for row in history]
    return {"curves": curves, "progress": progress, "seconds": time.perf_counter() - began}


def measure(curve):
    """The three measures of a curve (T,); None where a level is not kept."""
    curve = np.asarray(curve)
    # Errors that no context mends would grow with the length of the context.
    plateau = curve[-LAST:].mean()
    wrong = None
    if plateau > 0.9:
        wrong = 1 + float(np.maximum(1 - curve / plateau, 0).sum())
    levels = [elements_needed(curve, level) for level in (0.6, 0.9)]
    return dict(zip(QUANTITIES, (*levels, wrong), strict=True))


def power_law(m, n):
    """(gamma, its standard error) of log n = gamma log m + const by least squares: the scatter
    about the line, without the coarseness of an N that is a power of two. Networks without a value
    are left out; None for fewer than three, or moduli within a factor of four."""
    known = [(modulus, value) for modulus, value in zip(m, n, strict=True) if value]
    if len(known) < 3:
        return None, None
    moduli, values = np.array(known, dtype=float).T
    if moduli.max() < 4 * moduli.min():
        return None, None
    x = np.log(moduli)
    y = np.log(values)
    x = x - x.mean()
    y = y - y.mean()
    square = x @ x
    gamma = (x @ y) / square
    scatter = ((y - gamma * x) ** 2).sum() / (len(known) - 2)
    return float(gamma), float(np.sqrt(scatter / square))


def measured(points, trained):
    """Every measure of every predictor by network, and the exponent of each with its error."""
    moduli = [point["modulus"] for point in points]
    results = {}
    for name in PREDICTORS:
        rows = [measure(result["curves"][name]) for result in trained]
        for quantity in QUANTITIES:
            values = [row[quantity] for row in rows]
            gamma, error = power_law(moduli, values)
            results[f"{name}: {quantity}"] = values
            results[f"{name}: exponent_{quantity}"] = gamma
            results[f"{name}: error_{quantity}"] = error
    results["moduli"] = moduli
    results["accuracy_last"] = [result["progress"][-1] for result in trained]
    results["seconds"] = [result["seconds"] for result in trained]
    return results


def log_of(points, results):
    """Columns of the log: the measures, nan for none."""
    log = {"modulus": results["moduli"], "seed": [point["seed"] for point in points]}
    for name in PREDICTORS:
        for quantity in QUANTITIES:
            values = results[f"{name}: {quantity}"]
            log[f"{name}: {quantity}"] = [np.nan if v is None else v for v in values]
    return log


def main(argv=None):
    args = arguments(argv)
    experiment = cli.Experiment(args)
    dev = experiment.dev
    require(args, dev)
    points = []
    for m in sorted(args.moduli, reverse=True):  # slow first
        points += [point(args, m, args.seed + s) for s in range(args.seeds)]
    folder = experiment.open_sweep(free=("moduli", "seeds")) / cli.PACKS
    executor = _packs.make_executor(args)
    where = experiment.where(executor)
    work = functools.partial(_packs.one_by_one, train_one, folder=folder, **where)
    packs = experiment.sweep([[p] for p in points], work, executor, "network", "trained")
    if packs is None:
        return 1

    order = sorted(range(len(points)), key=lambda i: (points[i]["modulus"], points[i]["seed"]))
    points = [points[i] for i in order]
    trained = [packs[i][0] for i in order]
    results = measured(points, trained)
    log = log_of(points, results)

    def figures(out):
        curves = {}
        for p, result in zip(points, trained, strict=True):
            curves[f"{p['modulus']}, seed {p['seed']}"] = result["curves"]["transformer"]
        fits = {}
        for name in PREDICTORS:
            law = [results[f"{name}: {key}_wrong"] for key in ("exponent", "error")]
            fits[name] = (log[f"{name}: wrong"], *law)
        plots.scaling(curves, results["moduli"], fits, out / "lcg_scaling.png")

    shown = {name: "too few moduli" if v is None else v for name, v in results.items()}
    experiment.finish(results, log, figures, PAPER, "paper", shown)
    return None


if __name__ == "__main__":
    cli.main(main)
