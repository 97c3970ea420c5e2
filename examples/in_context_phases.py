r"""Phases of in-context learning, by number of pre-training tasks and share of train inputs.

    python examples/in_context_phases.py --quick          # p = 5, 2 x 2 points
    python examples/in_context_phases.py --workers 2      # p = 7, an hour; --resume goes on
    python examples/in_context_phases.py --workers 2 --depth 2 --out runs/phases_depth_2
    python examples/in_context_phases.py --high 0.75 --resume    # drawn anew, nothing is trained
    python examples/in_context_phases.py --p 29 --shots 32 --repeats \
        --depth 6 --width 512 --heads 4 --batch 1024 --lr 1.5e-4 --weight-decay 2 --warmup 10000 \
        --schedule cosine --steps 200000 --tasks 8 16 32 64 128 256 512 \
        --alpha 0.2 0.3 0.4 0.5 0.6 0.7 0.8               # the paper's, for GPUs

A point is a network (one a seed) that examples/in_context.py would train; all take the same number
of steps, and none ends early. The ability to answer for held-out tasks may come and go: there are
two diagrams, at the last step and at the best one for held-out tasks. A row of inputs holds none
twice (the paper's may, as with --repeats: in a small pool a copied answer looks like ability), so
that an alpha which leaves fewer inputs than --shots is refused. What counts as high is half: at
p = 7 ratio matching reaches 0.6 to 0.9 on held-out tasks, and guessing 0.14. Paper: He, Doshi, Das,
Gromov, Learning to grok, arXiv 2406.02550 (Figure 1b).
"""

from tinygrok import cli  # first: it sets up BLAS threads before NumPy loads

import _memory as memory  # isort: skip
import _optimizers as optimizers  # isort: skip
import _packs  # isort: skip
import functools  # isort: skip

import _figures_in_context_phases as plots
import in_context
import numpy as np
from _in_context_points import SETS, SOLVERS, options_of, train_one

from tinygrok.tasks import in_context as ic

QUICK = {"p": 5, "shots": 6, "tasks": [4, 16], "alpha": [0.3, 0.6], "batch": 48}
QUICK |= {"depth": 2, "steps": 300, "lr": 2e-3, "warmup": 100, "measure_every": 100}
MOST_NETWORKS = 1000  # the paper: 49 a depth and rule
MOMENTS = ("end", "best")
PAPER = {"fewest_tasks_ood": "256 of 841 (p = 29, depth 6)"}


def arguments(argv=None):
    p = cli.parser("in_context_phases", __doc__)
    add = p.add_argument
    count = cli.integer()
    some = cli.integer(1, 1000)
    size = cli.integer(1, 10**5)
    tasks = cli.integer(1, 4096)
    rules = ["rectangle", "random"]
    after = ["constant", "cosine"]
    shares = [0.3, 0.4, 0.5, 0.6, 0.75]
    dask = "address of a Dask scheduler; it and its workers need PYTHONPATH=examples"
    batch = "sequences a step: every point takes the nearest multiple of its tasks in a step"
    each = "tasks in a step (default: all), or all where a point has fewer"
    high = "accuracy that counts as high; the paper states none, in_context.py takes 0.75"
    add("--p", type=cli.integer(3, 100), default=7, help="modulus, a prime")
    add("--tasks", type=tasks, nargs="+", default=[4, 12, 20, 28, 36], help="columns")
    add("--alpha", type=cli.fraction(), nargs="+", default=shares, help="rows: share to train on")
    add("--rule", default="rectangle", choices=rules, help="how tasks are selected")
    add("--shots", type=cli.integer(2, 1000), default=12, help="triples (x, y, z) in a sequence")
    add("--repeats", action="store_true", help="a sequence may hold the same input twice")
    add("--depth", type=some, default=4, help="blocks")
    add("--width", type=size, default=64, help="channels")
    add("--heads", type=size, default=2, help="attention heads")
    add("--batch", type=cli.integer(1, 10**6), default=72, help=batch)
    add("--tasks-per-step", type=tasks, help=each)
    add("--steps", type=count, default=3500, help="optimiser steps of every network")
    add("--lr", type=cli.positive(), default=1e-3, help="peak learning rate of AdamW")
    add("--weight-decay", type=cli.real(), default=0.5, help="of matrices and embeddings")
    add("--warmup", type=cli.integer(0), default=200, help="steps of linear warm-up")
    add("--schedule", default="constant", choices=after, help="then; cosine to a tenth")
    optimizers.add_flags(p)
    add("--rows", nargs="+", metavar="RULE=SHARE", help="rules of rows, as in_context.py has them")
    add("--start", nargs="+", metavar="RULE=SHARE", help="shares at first (default: --rows)")
    add("--ramp", type=cli.integer(0), nargs=2, help="steps of their move")
    add("--measure-every", type=count, default=250, help="steps between measurements")
    add("--seeds", type=some, default=1, help="networks a point: --seed, --seed + 1, ...")
    add("--high", type=cli.fraction(), default=0.5, help=high)
    _packs.add_sweep(add, dask, "networks")
    args = cli.parse(p, argv, QUICK)
    optimizers.refuse_idle(args)
    _packs.refuse_twice(args, "tasks", "alpha")
    args.tasks.sort()
    args.alpha.sort()
    networks = len(args.tasks) * len(args.alpha) * args.seeds
    _packs.refuse_many(networks, MOST_NETWORKS, "tasks x alpha x seeds")
    return args


def points(args):
    """Flags of in_context.py for every network, in the order alpha, tasks, seed."""
    names = ("p", "rule", "shots", "repeats", "depth", "width", "heads", "steps", "lr", "dtype")
    names += ("weight_decay", "warmup", "measure_every", "optimizer")
    names += tuple(name for name in ("rows", "start", "ramp") if getattr(args, name))
    names += ("hold",) if args.hold else ("schedule",)
    names += ("matrix_lr",) if args.optimizer == "muon" else ()
    common = {name: getattr(args, name) for name in names}
    result = []
    for alpha in args.alpha:
        for tasks in args.tasks:
            each = min(tasks, args.tasks_per_step or tasks)
            rows = max(1, round(args.batch / each))
            cell = common | {"alpha": alpha, "tasks": tasks, "batch": rows * each}
            if each < tasks:
                cell["tasks_per_step"] = each
            result += [cell | {"seed": args.seed + s} for s in range(args.seeds)]
    return result


def check(args, dev, everything):
    """Refuse now what a network deep in the sweep would refuse."""
    for flags in everything:
        options = options_of(flags)
        net = in_context.make_model(options)
        in_context.make_data(options)
    largest = max(flags["batch"] for flags in everything)
    at_once = max(1, args.workers)
    parts = memory.gpt(dev, net, largest, sequences=500)
    memory.require(dev, **{name: at_once * bytes for name, bytes in parts.items()})


def outcome(curves, p, high):
    """Step, accuracies and phase of a network at the end, and at its best for held-out tasks.

    Two tasks agree on 1/p of the inputs, so that one which knows its own tasks alone is right on
    about 1/p to 2/p for others. Where no measurement exceeds that, the best is the last, not the
    luckiest one."""
    best = int(np.argmax(curves["ood_train"]))
    if curves["ood_train"][best] <= 2 / p:
        best = -1
    result = {}
    for moment, i in zip(MOMENTS, (-1, best), strict=True):
        accuracies = {name: curves[name][i] for name in SETS}
        phase = ic.phase(**accuracies, high=high)
        result[moment] = {"step": curves["step"][i], **accuracies, "phase": phase}
    return result


def maps(args, outcomes, moment):
    """{"phase": number of the commonest phase in plots.PHASES, set: mean accuracy over seeds}, with
    arrays (alpha, tasks)."""
    shape = (len(args.alpha), len(args.tasks), args.seeds)
    found = [each[moment] for each in outcomes]
    names = list(plots.PHASES)
    codes = np.array([names.index(row["phase"]) for row in found]).reshape(shape)
    counts = np.array([(codes == i).sum(axis=-1) for i in range(len(names))])
    result = {"phase": counts.argmax(axis=0)}
    for name in SETS:
        values = np.array([row[name] for row in found])
        result[name] = values.reshape(shape).mean(axis=-1)
    return result


def log_of(everything, trained, outcomes):
    """Columns of the log: a row for every network."""
    log = {name: [flags[name] for flags in everything] for name in ("tasks", "alpha", "seed")}
    log["batch"] = [flags["batch"] for flags in everything]
    for moment in MOMENTS:
        for name in ("step", *SETS, "phase"):
            log[f"{moment}_{name}"] = [each[moment][name] for each in outcomes]
    for solver in SOLVERS:
        log[solver] = [curves[solver] for curves in trained]
    return log


def summary(args, trained, diagrams):
    """Floor and ceiling; both diagrams in letters, a text for every alpha; cells by phase; the
    fewest tasks with an ability for held-out ones; mean accuracies (alpha, tasks)."""
    results = {"chance": 1 / args.p}
    for solver in SOLVERS:
        values = [curves[solver] for curves in trained]
        results[solver] = f"{min(values):.2f} to {max(values):.2f}"
    results["tasks"] = " ".join(map(str, args.tasks))
    letters = list(plots.PHASES.values())
    for moment, grid in diagrams.items():
        for i in reversed(range(len(args.alpha))):
            row = [letters[code] for code in grid["phase"][i]]
            results[f"{moment}: alpha {args.alpha[i]:g}"] = " ".join(row)
    for moment, grid in diagrams.items():
        cells = np.bincount(grid["phase"].ravel(), minlength=len(letters)).tolist()
        for name, count in zip(plots.PHASES, cells, strict=True):
            results[f"{moment}: {name}"] = count
    able = diagrams["best"]["phase"] >= letters.index("oM")
    columns = np.flatnonzero(able.any(axis=0))
    results["fewest_tasks_ood"] = args.tasks[columns[0]] if len(columns) else None
    for moment, grid in diagrams.items():
        for name in SETS:
            results[f"{moment}_{name}"] = grid[name].round(3).tolist()
    return results


def main(argv=None):
    args = arguments(argv)
    experiment = cli.Experiment(args)
    everything = points(args)
    check(args, experiment.dev, everything)
    executor = _packs.make_executor(args)
    folder = experiment.open_sweep(free=("tasks", "alpha", "seeds", "high")) / cli.PACKS
    cells = f"{len(args.tasks)} x {len(args.alpha)} points"
    print(f"{cells}, {len(everything)} networks of {args.steps} steps; chance 1/{args.p}")
    where = experiment.where(executor)
    work = functools.partial(_packs.one_by_one, train_one, folder=folder, **where)
    packs = [[flags] for flags in everything]
    results = experiment.sweep(packs, work, executor, "network", "trained")
    if results is None:
        return 1

    trained = [curves for (curves,) in results]
    outcomes = [outcome(curves, args.p, args.high) for curves in trained]
    diagrams = {moment: maps(args, outcomes, moment) for moment in MOMENTS}
    found = summary(args, trained, diagrams)
    shown = {name: x for name, x in found.items() if x != 0 and not isinstance(x, list)}

    def figures(out):
        settings = vars(args) | {solver: found[solver] for solver in SOLVERS}
        plots.diagrams(diagrams, settings, out / "in_context_phases.png")

    log = log_of(everything, trained, outcomes)
    experiment.finish(found, log, figures, PAPER, "paper", shown)
    return None


if __name__ == "__main__":
    cli.main(main)
