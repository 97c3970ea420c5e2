"""How soon a network groks under seven optimisers, each at its best learning rate, with quartiles.

    python examples/grok_optimizers.py              # 25 networks each; --resume goes on
    python examples/grok_optimizers.py --quick      # p = 59 in under a minute
    python examples/grok_optimizers.py --workers 2  # the same numbers, a pack a process

The networks are those of grok_addition.py; what is compared is AdamW with and without decay, SGD
with momentum, Muon, Grokfast (arXiv 2405.20233), AdamW at a constant norm of the weights (Omnigrok,
arXiv 2210.01117), and the StableMax cross-entropy (arXiv 2501.04697). Formulas:
tinygrok/engine/optim.py, tinygrok/ops/loss.py.

A network groks at the first measurement with 99 % of the held-out pairs right. All optimisers try
the same learning rates, on seeds of their own: the one with the smallest median there is the one
whose 25 other seeds are reported. Networks that never grok within the steps count as later than all
others: where they are half or more, the median is "> steps"."""

from tinygrok import cli  # first: it sets up BLAS threads before NumPy loads

import _memory as memory  # isort: skip
import functools  # isort: skip
import math

import _figures_grok_optimizers as plots
from _grok_optimizers import METHODS, order_statistic, train
from phase_diagram import make_executor

QUICK = {"p": 59, "width": 100, "weight_decay": 2.0, "steps": 200, "seeds": 5, "choosing": 1}
QUICK |= {"lr": [0.01, 0.03]}
OTHER_SEEDS = 1_000_000  # where the seeds begin with which learning rates are chosen
MOST_NETWORKS = 10_000


def arguments(argv=None):
    p = cli.parser("grok_optimizers", __doc__)
    add = p.add_argument
    count = cli.integer()
    some = cli.integer(1, 1000)
    workers = cli.integer(0, cli.MOST_WORKERS)
    names = list(METHODS)
    dask = "address of a Dask scheduler; it and its workers need PYTHONPATH=examples"
    decay = "decoupled decay of AdamW, Muon and Grokfast; the others have none"
    grid = "learning rates to choose from, the same for all"
    choosing = "networks that choose a learning rate, of other seeds"
    add("--methods", nargs="+", default=names, choices=names, metavar="NAME", help=", ".join(names))
    add("--lr", type=cli.positive(), nargs="+", default=[0.003, 0.01, 0.03, 0.1], help=grid)
    add("--p", type=cli.integer(5, 1000), default=97, help="modulus")
    add("--width", type=cli.integer(1, 10**6), default=500, help="hidden neurons")
    add("--train-frac", type=cli.fraction(), default=0.5, help="share of the table to train on")
    add("--weight-decay", type=cli.real(), default=1.0, help=decay)
    add("--steps", type=count, default=400, help="optimiser steps at most")
    add(
        "--seeds", type=some, default=25, help="networks that are reported: --seed, --seed + 1, ..."
    )
    add("--choosing", type=some, default=3, help=choosing)
    add("--log-every", type=count, default=5, help="steps between measurements")
    add("--workers", type=workers, default=0, help="processes (0: this one, with threads)")
    add("--scheduler", metavar="tcp://HOST:PORT", help=dask)
    add("--resume", action="store_true", help="keep the finished packs in --out, and go on")
    args = cli.parse(p, argv, QUICK)
    for name in ("methods", "lr"):
        if len(set(getattr(args, name))) < len(getattr(args, name)):
            raise cli.InputError(f"--{name}: every value once")
    args.lr.sort()
    networks = len(args.methods) * (len(args.lr) * args.choosing + args.seeds)
    if networks > MOST_NETWORKS:
        sizes = "methods x (learning rates x choosing + seeds)"
        raise cli.InputError(f"{sizes}: {networks:,} networks, and {MOST_NETWORKS:,} at most")
    return args


def pack(args, method, lr, first, count):
    """Points of networks that train together, with the seeds first, first + 1, ..."""
    names = ("p", "width", "train_frac", "weight_decay", "steps", "log_every", "dtype")
    point = {name: getattr(args, name) for name in names} | {"method": method, "lr": lr}
    return [point | {"seed": first + s} for s in range(count)]


def choosing_packs(args):
    """{(method, lr): pack}"""
    first = args.seed + OTHER_SEEDS
    packs = {}
    for method in args.methods:
        for lr in args.lr:
            packs[method, lr] = pack(args, method, lr, first, args.choosing)
    return packs


def chosen(args, tried):
    """{method: learning rate}: that of the smallest median step of grokking; where no median is
    known, of the best mean test accuracy ever seen.   tried {(method, lr): outcomes}"""
    best = {}
    for method in args.methods:
        ranks = {lr: rank(tried[method, lr]) for lr in args.lr}
        best[method] = min(args.lr, key=ranks.get)
    return best


def rank(outcomes):
    median = order_statistic([x["step_grok"] for x in outcomes], 1 / 2)
    accuracy = sum(max(x["test_accuracy"]) for x in outcomes) / len(outcomes)
    return math.inf if median is None else median, -accuracy


def measured(args, tried, best, reported):
    """{method: row of the table}"""
    rows = {}
    for method in args.methods:
        outcomes = reported[method]
        steps = [x["step_grok"] for x in outcomes]
        quarters = [order_statistic(steps, share) for share in (1 / 4, 1 / 2, 3 / 4)]
        of_train = [x["step_train"] for x in outcomes]
        medians = {}
        for lr in args.lr:
            of_lr = [x["step_grok"] for x in tried[method, lr]]
            medians[f"{lr:g}"] = order_statistic(of_lr, 1 / 2)
        rows[method] = {
            "lr": best[method],
            "lr_at_the_edge": best[method] in (args.lr[0], args.lr[-1]),
            "median": quarters[1],
            "quartiles": [quarters[0], quarters[2]],
            "grokked": sum(step is not None for step in steps),
            "networks": len(steps),
            "diverged": sum(x["diverged"] for x in outcomes),
            "median_train": order_statistic(of_train, 1 / 2),
            "best_test_accuracy": max(max(x["test_accuracy"]) for x in outcomes),
            "median_by_lr": medians,
        }
    return rows


def show(args, rows):
    """The closing table."""

    def text(step):
        return f"> {args.steps}" if step is None else str(step)

    columns = (
        f"{'median':>8}{'quartiles':>16}{'grokked':>10}{'train 99 %':>12}   best test accuracy"
    )
    print(f"\n{'step to 99 % test':<20}{'lr':>7} {columns}")
    for method, row in rows.items():
        lr = f"{row['lr']:g}{'*' if row['lr_at_the_edge'] else ' '}"
        quartiles = " to ".join(text(step) for step in row["quartiles"])
        share = f"{row['grokked']}/{row['networks']}"
        memorised = text(row["median_train"])
        numbers = f"{text(row['median']):>8}{quartiles:>16}{share:>10}{memorised:>12}"
        print(f"{method:<20}{lr:>8}{numbers}{row['best_test_accuracy']:>12.4f}")
    print(f"> {args.steps}: not within the steps; *: at the edge of {args.lr}, so that a better")
    print("learning rate may lie outside; every one was chosen on other seeds than these")


def log_of(packs, results):
    """Columns of the log: a row for every network."""
    log = {name: [] for name in ("method", "lr", "seed", "step_train", "step_grok", "diverged")}
    for points, outcomes in zip(packs, results, strict=True):
        for point, found in zip(points, outcomes, strict=True):
            row = point | found
            for name, column in log.items():
                column.append(row[name])
    return log


def main(argv=None):
    args = arguments(argv)
    experiment = cli.Experiment(args)
    at_once = max(args.seeds, args.choosing) * max(1, args.workers)
    memory.require(experiment.dev, **memory.table(experiment.dev, args.p, args.width, at_once))
    executor = make_executor(args)
    folder = experiment.open_sweep() / cli.PACKS
    where = {"device": args.device, "threads": 1 if executor else args.threads}
    work = functools.partial(train, **where, tf32=args.tf32, folder=folder)
    tries = choosing_packs(args)
    print(f"{len(args.methods)} optimisers, {len(args.lr)} learning rates, {args.choosing} seeds")
    results = experiment.sweep(list(tries.values()), work, executor, "pack", "packs: rates")
    if results is None:
        return 1

    tried = dict(zip(tries, results, strict=True))
    best = chosen(args, tried)
    packs = [pack(args, method, best[method], args.seed, args.seeds) for method in args.methods]
    print(f"{args.seeds} networks under each optimiser, at its best learning rate")
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
