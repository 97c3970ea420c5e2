"""How soon a network groks under several optimisers, each at the best of a few learning rates.

    python examples/grok_optimizers.py              # 25 networks each; --resume goes on
    python examples/grok_optimizers.py --quick      # p = 59 in under a minute
    python examples/grok_optimizers.py --workers 2  # the same numbers, a pack a process
    python examples/grok_optimizers.py --methods StableMax "no decay" --steps 2000

The networks are those of grok_addition.py; what is compared is AdamW, SGD with momentum, Muon,
Grokfast (arXiv 2405.20233), AdamW without decay at a constant norm of the weights (Omnigrok, arXiv
2210.01117), without decay on the StableMax cross-entropy (arXiv 2501.04697), and, as the control of
these two, without decay on the usual one. Formulas: tinygrok/engine/optim.py, tinygrok/ops/loss.py;
decays and norms: METHODS of examples/_grok_optimizers.py.

A network groks at the first measurement with 99 % of the held-out pairs right. Every optimiser
tries its own rate times the same factors, on other seeds than those that are reported: the rate
with the smallest median there is taken. All else of a method is fixed, not searched: decay,
momentum and norm were set by hand, so that this compares settings and does not rank methods.
Networks that never grok within the steps count as later than all others: where they are more than
half, the median is "> steps"."""

from tinygrok import cli  # first: it sets up BLAS threads before NumPy loads

import _memory as memory  # isort: skip
import _packs  # isort: skip
import functools  # isort: skip
import math

import _figures_grok_optimizers as plots
from _grok_optimizers import METHODS, train
from _seeds import quartiles_of_steps

from tinygrok.engine.rng import generator
from tinygrok.tasks.modular import addition

QUICK = {"p": 59, "width": 200, "weight_decay": 2.0, "steps": 200}  # grok_addition.py --quick
QUICK |= {"seeds": 5, "choosing": 1, "factors": [0.3, 1.0, 3.0, 10.0]}
OTHER_SEEDS = 1_000_000  # where the seeds begin with which learning rates are chosen
MOST_NETWORKS = 10_000
STABLEMAX = (
    "StableMax groks without decay, but takes longer: see it beside its control by\n"
    '--quick --methods StableMax "no decay" --steps 2000'
)


def arguments(argv=None):
    p = cli.parser("grok_optimizers", __doc__)
    add = p.add_argument
    count = cli.integer()
    some = cli.integer(1, 1000)
    names = list(METHODS)
    dask = "address of a Dask scheduler; it and its workers need PYTHONPATH=examples"
    decay = "of AdamW and Grokfast; SGD and Muon have a part of it, the others none"
    grid = "learning rates to choose from, times the rate of a method: the same for all"
    choosing = "networks that choose a learning rate, of other seeds"
    factors = [0.3, 1.0, 3.0, 10.0, 30.0]
    add("--methods", nargs="+", default=names, choices=names, metavar="NAME", help=", ".join(names))
    add("--factors", type=cli.positive(), nargs="+", default=factors, help=grid)
    add("--p", type=cli.integer(5, 1000), default=97, help="modulus")
    add("--width", type=cli.integer(1, 10**6), default=500, help="hidden neurons")
    add("--train-frac", type=cli.fraction(), default=0.5, help="share of the table to train on")
    add("--weight-decay", type=cli.real(), default=1.0, help=decay)
    add("--steps", type=count, default=400, help="optimiser steps at most")
    add(
        "--seeds", type=some, default=25, help="networks that are reported: --seed, --seed + 1, ..."
    )
    add("--choosing", type=some, default=3, help=choosing)
    add("--log-every", type=count, default=2, help="steps between measurements")
    _packs.add_sweep(add, dask)
    args = cli.parse(p, argv, QUICK)
    _packs.refuse_twice(args, "methods", "factors")
    args.factors.sort()
    if not any("decay" in METHODS[method] for method in args.methods):
        cli.refuse_idle(args, f"means nothing to {', '.join(args.methods)}", "weight_decay")
    networks = len(args.methods) * (len(args.factors) * args.choosing + args.seeds)
    sizes = "methods x (learning rates x choosing + seeds)"
    _packs.refuse_many(networks, MOST_NETWORKS, sizes)
    addition(args.p).split(args.train_frac, generator(args.seed, "split"))  # or a line why not
    return args


def pack(args, method, factor, first, count):
    """Points of networks that train together, with the seeds first, first + 1, ..."""
    names = ("p", "width", "train_frac", "weight_decay", "steps", "log_every", "dtype")
    point = {name: getattr(args, name) for name in names}
    point |= {"method": method, "lr": learning_rate(method, factor)}
    return [point | {"seed": first + s} for s in range(count)]


def learning_rate(method, factor):
    return float(f"{factor * METHODS[method]['rate']:.6g}")  # 0.3, and not 0.30000000000000004


def choosing_packs(args):
    """{(method, factor): pack}"""
    first = args.seed + OTHER_SEEDS
    packs = {}
    for method in args.methods:
        for factor in args.factors:
            packs[method, factor] = pack(args, method, factor, first, args.choosing)
    return packs


def chosen(args, tried):
    """{method: factor}: that of the smallest median step of grokking; where no median is known, of
    the best mean test accuracy ever seen.   tried {(method, factor): outcomes}"""
    best = {}
    for method in args.methods:
        ranks = {factor: rank(tried[method, factor]) for factor in args.factors}
        best[method] = min(args.factors, key=ranks.get)
    return best


def rank(outcomes):
    _, median, _ = quartiles_of_steps([x["step_grok"] for x in outcomes])
    accuracy = sum(max(x["test_accuracy"]) for x in outcomes) / len(outcomes)
    return math.inf if median is None else median, -accuracy


def measured(args, tried, best, reported):
    """{method: row of the table}"""
    rows = {}
    for method in args.methods:
        outcomes = reported[method]
        steps = [x["step_grok"] for x in outcomes]
        first, median, third = quartiles_of_steps(steps)
        of_train = [x["step_train"] for x in outcomes]
        medians = {}
        for factor in args.factors:
            of_rate = [x["step_grok"] for x in tried[method, factor]]
            medians[f"{factor:g}"] = quartiles_of_steps(of_rate)[1]
        rows[method] = {
            "lr": learning_rate(method, best[method]),
            "at_the_edge": best[method] in (args.factors[0], args.factors[-1]),
            "median": median,
            "quartiles": [first, third],
            "grokked": sum(step is not None for step in steps),
            "networks": len(steps),
            "diverged": sum(x["diverged"] for x in outcomes),
            "median_train": quartiles_of_steps(of_train)[1],
            "best_test_accuracy": max(max(x["test_accuracy"]) for x in outcomes),
            "median_by_factor": medians,
        }
    return rows


def show(args, rows):
    """The closing table."""

    def text(step):
        return f"> {args.steps}" if step is None else str(step)

    columns = (
        f"{'median':>8}{'quartiles':>20}{'grokked':>10}{'train 99 %':>12}   best test accuracy"
    )
    print(f"\n{'step to 99 % test':<20}{'lr':>7} {columns}")
    for method, row in rows.items():
        lr = f"{row['lr']:g}{'*' if row['at_the_edge'] else ' '}"
        quartiles = " to ".join(text(step) for step in row["quartiles"])
        share = f"{row['grokked']}/{row['networks']}"
        memorised = text(row["median_train"])
        numbers = f"{text(row['median']):>8}{quartiles:>20}{share:>10}{memorised:>12}"
        print(f"{method:<20}{lr:>8}{numbers}{row['best_test_accuracy']:>12.4f}")
    print(
        f"> {args.steps}: not within the steps; *: the first or last of the rates that were tried,"
    )
    print("a better one may lie outside; every rate was chosen on other seeds than these")
    if "StableMax" in rows and rows["StableMax"]["median"] is None:
        print(STABLEMAX)


def log_of(packs, results):
    """Columns of the log: a row for every network."""
    rows = []
    for points, outcomes in zip(packs, results, strict=True):
        rows += [point | found for point, found in zip(points, outcomes, strict=True)]
    names = ("method", "lr", "seed", "step_train", "step_grok", "diverged")
    return _packs.columns(names, rows)


def main(argv=None):
    args = arguments(argv)
    experiment = cli.Experiment(args)
    at_once = max(args.seeds, args.choosing) * max(1, args.workers)
    memory.require(experiment.dev, **memory.table(experiment.dev, args.p, args.width, at_once))
    executor = _packs.make_executor(args)
    folder = experiment.open_sweep() / cli.PACKS
    work = functools.partial(train, folder=folder, **experiment.where(executor))
    tries = choosing_packs(args)
    print(
        f"{len(args.methods)} optimisers, {len(args.factors)} learning rates, {args.choosing} seeds"
    )
    results = experiment.sweep(list(tries.values()), work, executor, "pack", "packs: rates")
    if results is None:
        return 1

    tried = dict(zip(tries, results, strict=True))
    best = chosen(args, tried)
    packs = [pack(args, method, best[method], args.seed, args.seeds) for method in args.methods]
    print(f"{args.seeds} networks under each optimiser, at the best of these learning rates")
    reports = experiment.sweep(packs, work, executor, "pack", "packs: networks")
    if reports is None:
        return 1

    reported = dict(zip(args.methods, reports, strict=True))
    rows = measured(args, tried, best, reported)

    def figures(out):
        plots.race(rows, reported, args, out / "grok_optimizers.png")

    log = log_of([*tries.values(), *packs], [*results, *reports])
    experiment.write(rows, log, figures)
    show(args, rows)
    experiment.list_files()
    return None


if __name__ == "__main__":
    cli.main(main)
