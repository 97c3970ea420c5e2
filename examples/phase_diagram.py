"""Phase diagrams of learning from corrupted labels, by training fraction and corrupted fraction.

    python examples/phase_diagram.py --quick
    python examples/phase_diagram.py --grid 5 --p 59 --width 200 --steps 600    # minutes
    python examples/phase_diagram.py                # the paper's 17 x 17 x 4: use a GPU
    python examples/phase_diagram.py --workers 4    # processes of this machine
    python examples/phase_diagram.py --scheduler tcp://host:8786    # a Dask cluster

One diagram for each strength of a regularisation. Networks train in packs, as ensembles; every
finished pack is a file in --out, and --resume runs what is missing. Paper: Doshi, Das, He, Gromov,
To grok or not to grok, arXiv 2310.13061 (Figure 3).
"""

from tinygrok import cli  # first: it sets up BLAS threads before NumPy loads

import _packs  # isort: skip
from _maps import save_maps  # isort: skip

import _figures_corrupted_labels as plots
import numpy as np

from tinygrok.engine.rng import generator
from tinygrok.ops.activation import activation_help, resolve
from tinygrok.ops.dropout import check_rate_host
from tinygrok.ops.loss import LOSSES
from tinygrok.probes.phases import PHASES
from tinygrok.tasks import TASKS
from tinygrok.tasks.corruption import RULES
from tinygrok.training.ensembles import complete, train_pack

# Weight decays, dropout rates, or batch sizes with and without BatchNorm.
STRENGTHS = {
    "weight_decay": (0.0, 5.0, 15.0, 20.0),
    "dropout": (0.0, 0.3, 0.6, 0.9),
    "batchnorm": (64.0,),
    "minibatch": (8.0, 64.0),
}
QUICK = {"grid": 3, "p": 47, "width": 150, "steps": 300}
QUICK_STRENGTHS = {"weight_decay": (0.0, 15.0), "dropout": (0.0, 0.3), "minibatch": (64.0,)}
BY_BATCH = ("batchnorm", "minibatch")


def arguments(argv=None):
    p = cli.parser("phase_diagram", __doc__)
    add = p.add_argument
    count = cli.integer()
    kinds = sorted(STRENGTHS)
    grid = cli.integer(1, 200)
    some = cli.integer(1, 1000)
    seeds = "networks a cell; a cell shows means and the commonest phase"
    add("--regularizer", default="weight_decay", choices=kinds, help="what the columns vary")
    add("--strengths", type=cli.real(), nargs="+", help="decays, dropout rates or batch sizes")
    add("--grid", type=grid, default=17, help="points along each axis, from 0.1 to 0.9")
    add("--steps", type=count, default=2000, help="optimiser steps of every network")
    add("--task", default="addition", choices=sorted(TASKS), help="function of (n1, n2) mod p")
    add("--p", type=cli.integer(5, 1000), default=97, help="modulus")
    add("--width", type=cli.integer(1, 10**6), default=500, help="hidden neurons")
    add("--loss", default="mse", choices=list(LOSSES), help="loss")
    add("--activation", default="square", help=activation_help())
    add("--batch-size", type=count, help="minibatch size (default: full batch)")
    add("--rule", default="uniform", choices=RULES, help="how labels are corrupted")
    add("--seeds", type=some, default=1, help=seeds)
    add("--pack", type=some, help="networks a pack (default: 8, on a GPU what fits)")
    add("--log-every", type=count, default=50, help="steps between measurements")
    _packs.add_sweep(add, "address of a Dask scheduler")
    args = cli.parse(p, argv, QUICK)
    if not args.strengths:
        quick = QUICK_STRENGTHS if args.quick else {}
        args.strengths = list(quick.get(args.regularizer, STRENGTHS[args.regularizer]))
    check(args)
    return args


def check(args):
    """Refuse flags that a network deep in the sweep would refuse."""
    _packs.refuse_twice(args, "strengths")
    networks = len(args.strengths) * args.grid**2 * args.seeds
    _packs.refuse_many(networks, sizes="strengths x grid x grid x seeds")
    resolve(args.activation)
    if args.regularizer == "dropout":
        check_rate_host(args.strengths)
    by_batch = args.regularizer in BY_BATCH
    if by_batch and args.batch_size is not None:
        raise cli.InputError(f"with --regularizer {args.regularizer} --strengths are batch sizes")
    train, _ = TASKS[args.task](args.p).split(axis_of(args)[0], generator(args.seed, "split"))
    smallest = f"{len(train)}, the smallest training set"
    for size in args.strengths if by_batch else ():
        if not 2 <= size <= len(train) or size % 1:
            raise cli.InputError(f"--strengths: batch sizes are whole numbers from 2 to {smallest}")
    if args.batch_size is not None and args.batch_size > len(train):
        raise cli.InputError(f"--batch-size: at most {smallest}")


def axis_of(args):
    """The training fractions, and the corrupted fractions."""
    if args.grid == 1:
        return [0.5]
    return np.linspace(0.1, 0.9, args.grid).round(6).tolist()


def settings_of(args, strength):
    """What a strength means for a network."""
    if args.regularizer not in BY_BATCH:
        batch_size = args.batch_size
        return {args.regularizer: strength, "steps": args.steps, "batch_size": batch_size}
    # As the paper: the same epochs, lr = 0.01 sqrt(batch/256).
    batch = int(strength)
    lr = 0.01 * (batch / 256) ** 0.5
    batchnorm = args.regularizer == "batchnorm"
    steps = args.steps if batchnorm else args.steps * 256 // batch
    return {"batch_size": batch, "lr": lr, "batchnorm": batchnorm, "steps": steps}


def points(args):
    """One point per network, in the order strength, alpha, xi, seed."""
    axis = axis_of(args)
    names = ("task", "p", "width", "loss", "activation", "rule", "log_every", "dtype")
    common = {name: getattr(args, name) for name in names}
    result = []
    for strength in args.strengths:
        column = common | settings_of(args, strength)
        for alpha in axis:
            for xi in axis:
                cell = column | {"alpha": alpha, "xi": xi}
                result += [cell | {"seed": args.seed + s} for s in range(args.seeds)]
    return result


def grids(args, outcomes):
    """{title: {"phase", "train", "test"}} with arrays (alpha, xi): the number of the commonest
    phase, and means over seeds, nan where a network diverged."""
    size = len(axis_of(args))
    shape = (len(args.strengths), size, size, args.seeds)
    codes = np.array([PHASES.index(outcome["phase"]) for outcome in outcomes]).reshape(shape)
    counts = np.array([(codes == i).sum(axis=-1) for i in range(len(PHASES))])
    maps = {"phase": counts.argmax(axis=0)}
    for split in ("train", "test"):
        accuracies = [outcome[f"{split}_accuracy"] for outcome in outcomes]
        maps[split] = np.array(accuracies, dtype=float).reshape(shape).mean(axis=-1)
    name = args.regularizer.replace("_", " ")
    return {
        f"{name} {strength:g}": {key: columns[i] for key, columns in maps.items()}
        for i, strength in enumerate(args.strengths)
    }


def summary(outcomes, table, seconds_per_network):
    """How many networks, and how many cells of each diagram, are in each phase."""
    phases = [outcome["phase"] for outcome in outcomes]
    results = {name: phases.count(name) for name in PHASES}
    for title, grid in table.items():
        cells = np.bincount(grid["phase"].ravel(), minlength=len(PHASES)).tolist()
        for name, count in zip(PHASES, cells, strict=True):
            if count:
                results[f"{title}: {name}"] = count
    results["networks"] = len(outcomes)
    results["seconds_per_network"] = seconds_per_network
    return results


def log_of(everything, outcomes):
    """Columns of the log: settings and outcome of every network."""
    names = ("alpha", "xi", "weight_decay", "dropout", "batch_size", "seed")
    log = _packs.columns(names, [complete(point) for point in everything])
    return log | _packs.columns(outcomes[0], outcomes)


def main(argv=None):
    args = arguments(argv)
    experiment = cli.Experiment(args)
    executor = _packs.make_executor(args)
    everything = points(args)
    size = args.pack or (8 if args.scheduler else None)
    cut = _packs.start(experiment, everything, size)
    outcomes = _packs.outcomes(experiment, everything, cut, train_pack, executor)
    if outcomes is None:
        return 1

    table = grids(args, outcomes)
    trained = len(everything) * experiment.trained / len(cut)
    seconds = experiment.seconds / trained if trained else None
    axis = axis_of(args)
    axes = {"alpha": axis, "xi": axis, "strength": args.strengths}
    save_maps(experiment.out / "maps.npz", axes, table)

    def figures(out):
        network = f"{args.activation}, {args.loss}, width {args.width}, {args.steps} steps"
        title = f"{args.task}, p = {args.p}: {network}\nblack: test accuracy of 90%"
        plots.diagram(table, axis, axis, out / "phase_diagram.png", title)

    log = log_of(everything, outcomes)
    experiment.finish(summary(outcomes, table, seconds), log, figures)
    return None


if __name__ == "__main__":
    cli.main(main)
