"""Which initial weights a deep network learns from: training maps beside the critical line.

    python examples/training_maps.py --quick
    python examples/training_maps.py                         # scikit-learn's digits
    python examples/training_maps.py --data fashion-mnist    # a folder of images
    python examples/training_maps.py --activation relu --norm pre --mu 0 0.5 0.9 1    # the paper's
    python examples/training_maps.py --activation erf --norm none --mu 0 0.5 0.9      # panels

A cell of a map is a deep MLP, h' = W phi(h) + b + mu h with W_ij ~ Normal(0, sigma_w^2/N) and
b_i ~ Normal(0, sigma_b^2), that trains for a few hundred steps of plain SGD; its colour is its
accuracy. Without a norm only networks near the critical line of the theory (chi_J = 1) learn; with
LayerNorm before the activations and mu = 1 all do. As in the paper every cell has a learning rate
of its own: each of --lr trains for --trial steps, and the best of them in training goes on. Every
finished cell is a file in --out, and --resume trains what is missing. Paper: Doshi, He, Gromov,
Critical Initialization of Wide and Deep Neural Networks using Partial Jacobians, arXiv 2111.12143
(Figure 3: width 500, 50 layers, ten epochs, 25 x 11 cells, 26 learning rates)."""

from tinygrok import cli  # first: it sets up BLAS threads before NumPy loads

import _packs  # isort: skip
import functools  # isort: skip
import os  # isort: skip

import _figures_training_maps as plots
import _memory as memory
import numpy as np
from _maps import save_maps
from _training_maps import SIZES, critical_curve, load, log10_jacobian, needed, train

from tinygrok.engine.device import default_threads
from tinygrok.models.vision import NORMS

KINDS = ("erf", "gelu", "identity", "leaky_relu", "relu", "tanh")
QUICK = {"grid": 4, "depth": 20, "width": 50, "steps": 60, "trial": 20, "lr": [0.01, 0.1]}
NEAR = 2  # decades of J between the last layer and the first: within them a cell is near the line
FAR = 5


def arguments(argv=None):
    p = cli.parser("training_maps", __doc__)
    add = p.add_argument
    count = cli.integer()
    rates = [0.003, 0.01, 0.03, 0.1, 0.3]
    folder = "folder of images (default: scikit-learn's digits)"
    norms = "normalisation of every map, and its place (one: of all)"
    lr = "learning rates that every cell tries"
    add("--data", type=os.path.abspath, metavar="DIR", help=folder)
    add("--activation", default="erf", choices=KINDS, help="phi")
    add("--norm", nargs="+", default=["none", "pre"], choices=NORMS, help=norms)
    mu = cli.real(0, 1)
    add("--mu", type=mu, nargs="+", default=[0.0, 1.0], help="residual strength of every map")
    add("--depth", type=cli.integer(1, 1000), default=30, help="hidden layers")
    add("--width", type=cli.integer(2, 10**4), default=100, help="units of a layer")
    add("--sw2", type=cli.positive(), nargs=2, default=[0.25, 5.0], help="sigma_w^2, from and to")
    add("--sb2", type=cli.real(), nargs=2, default=[0.0, 2.0], help="sigma_b^2, from and to")
    add("--grid", type=cli.integer(2, 100), default=9, help="cells along an axis")
    add("--steps", type=count, default=300, help="optimiser steps of every cell")
    add("--trial", type=count, default=30, help="of them, those that choose a learning rate")
    add("--batch", type=cli.integer(2, 10**4), default=128, help="images a step")
    add("--lr", type=cli.positive(), nargs="+", default=rates, help=lr)
    _packs.add_sweep(add, what="cells")
    p.set_defaults(workers=min(2, default_threads()[0]))  # threads gain little in such layers
    args = cli.parse(p, argv, QUICK)
    check(args)
    return args


def check(args):
    """Refuse flags that a cell deep in the sweep would refuse; --norm and --mu become one a map."""
    _packs.refuse_twice(args, "lr")
    args.lr.sort()
    maps = max(len(args.norm), len(args.mu))
    for name in ("norm", "mu"):
        values = getattr(args, name)
        if len(values) not in (1, maps):
            raise cli.InputError("--norm and --mu: as many of one as of the other, or one of it")
        setattr(args, name, values * (maps // len(values)))
    if len(set(panels(args))) < maps:
        raise cli.InputError("--norm and --mu: every map once")
    for name in ("sw2", "sb2"):
        low, high = getattr(args, name)
        if low >= high:
            raise cli.InputError(f"--{name}: from {low:g} to {high:g} is no range")
    if args.trial > args.steps:
        raise cli.InputError("--trial: at most --steps")
    _packs.refuse_many(maps * args.grid**2 * len(args.lr), sizes="maps x grid x grid x rates")


def panels(args):
    """[(norm, mu)] of the maps."""
    return list(zip(args.norm, args.mu, strict=True))


def axes(args):
    """sigma_w^2 and sigma_b^2 of the columns and rows of a map."""
    return tuple(np.linspace(*getattr(args, name), args.grid).round(6) for name in ("sw2", "sb2"))


def points(args):
    """One point per cell, in the order map, sb2, sw2."""
    common = {name: getattr(args, name) for name in (*SIZES, "lr")}
    sw2, sb2 = (axis.tolist() for axis in axes(args))
    result = []
    for norm, mu in panels(args):
        for b in sb2:
            row = common | {"norm": norm, "mu": mu, "sb2": b}
            result += [row | {"sw2": w} for w in sw2]
    return result


def maps_of(args, outcomes):
    """{(norm, mu): {quantity: (sb2, sw2)}}: lr, accuracies and losses, nan where every rate
    diverged, and log10_J of the theory."""
    size = (len(args.norm), args.grid, args.grid)
    found = {}
    for name in outcomes[0]:
        values = [outcome[name] for outcome in outcomes]
        found[name] = np.array(values, dtype=float).reshape(size)
    maps = {}
    for i, panel in enumerate(panels(args)):
        maps[panel] = {name: columns[i] for name, columns in found.items()}
        maps[panel]["log10_J"] = log10_jacobian(args, *panel, *axes(args))
    return maps


def title(norm, mu):
    return f"norm {norm}, mu {mu:g}"


def medians(grid, cells):
    """[how many cells, their median accuracy in training, in test]; a diverged one counts as 0."""
    accuracies = [np.nan_to_num(grid[f"{split}_accuracy"][cells]) for split in ("train", "test")]
    return [int(cells.sum()), *(float(np.median(x)) if x.size else None for x in accuracies)]


def rows_of(values):
    """A map as lists of numbers, None for what is not finite."""
    return [[float(x) if np.isfinite(x) else None for x in row] for row in values]


def summary(maps, classes):
    """How the cells of every map learn, near the critical line and far from it; and what is in them
    over (sb2, sw2), None where every rate diverged.

    half   of what the best cell of all maps learns above chance"""
    best = max(np.nanmax(grid["train_accuracy"], initial=0) for grid in maps.values())
    half = float((best + 1 / classes) / 2)
    results: dict = {"chance": 1 / classes, "half": half}
    for panel, grid in maps.items():
        decades = np.nan_to_num(np.abs(grid["log10_J"]), nan=np.inf)
        found: dict = {"share_that_learns": float((grid["train_accuracy"] > half).mean())}
        found["near"] = medians(grid, decades <= NEAR)
        found["far"] = medians(grid, decades > FAR)
        results[title(*panel)] = found
        results[f"{title(*panel)}: cells"] = {name: rows_of(x) for name, x in grid.items()}
    return results


def show(args, results):
    """Training accuracies in per cent, a map at a time."""
    sw2, sb2 = axes(args)
    half = f"{100 * results['half']:.0f}%"
    bands = {"near": f"within {NEAR} decades of 1", "far": f"off by more than {FAR} decades"}
    for panel in panels(args):
        found = results[title(*panel)]
        across = "sigma_w^2 across, sigma_b^2 down"
        print(f"\n{title(*panel)}: training accuracy in per cent, {across}")
        print(" " * 8 + "".join(f"{x:>7.3g}" for x in sw2))
        cells = results[f"{title(*panel)}: cells"]
        for b, row in zip(sb2, cells["train_accuracy"], strict=True):
            texts = ["-" if x is None else f"{100 * x:.0f}" for x in row]
            print(f"{b:>8.3g}" + "".join(f"{text:>7}" for text in texts))
        print(f"{100 * found['share_that_learns']:.0f}% of the cells learn more than {half}")
        for name, band in bands.items():
            count, *accuracies = found[name]
            if count:
                train_accuracy, test_accuracy = (f"{100 * x:.0f}%" for x in accuracies)
                both = f"{train_accuracy} in training, {test_accuracy} in test"
                print(f"J by theory {band}: {count} cells, in the median {both}")


def log_of(everything, outcomes, maps):
    """Columns of the log: a row for every cell."""
    log = _packs.columns(("norm", "mu", "sw2", "sb2"), everything)
    log |= _packs.columns(outcomes[0], outcomes)
    log["log10_J"] = np.concatenate([grid["log10_J"].ravel() for grid in maps.values()])
    return log


def main(argv=None):
    args = arguments(argv)
    experiment = cli.Experiment(args)
    data = load(args.data)
    everything = points(args)
    executor = _packs.make_executor(args)
    largest = everything[-1]
    memory.require(experiment.dev, **needed(experiment.dev, largest, data, max(1, args.workers)))
    experiment.open_sweep()
    rates = (
        f"the best of {len(args.lr)} learning rates" if len(args.lr) > 1 else "one learning rate"
    )
    print(f"{len(everything)} cells, {args.depth} layers of {args.width}: {rates} each")
    work = functools.partial(train, folder=args.data, **experiment.where(executor))
    packs = [[point] for point in everything]
    results = experiment.sweep(packs, work, executor, "cell", "trained")
    if results is None:
        return 1
    outcomes = [outcome for (outcome,) in results]
    maps = maps_of(args, outcomes)
    found = summary(maps, data.classes)
    sw2, sb2 = axes(args)
    axes_of_maps = {"sw2": sw2, "sb2": sb2, "norm": args.norm, "mu": args.mu}
    save_maps(experiment.out / "maps.npz", axes_of_maps, maps)

    def figures(out):
        lines = {panel: critical_curve(args, *panel, axes(args)[1]) for panel in maps}
        plots.training_maps(args, maps, axes(args), lines, found, out / "training_maps.png")

    experiment.write(found, log_of(everything, outcomes, maps), figures)
    show(args, found)
    experiment.list_files()
    return None


if __name__ == "__main__":
    cli.main(main)
