r"""An MLP-Mixer of 100 blocks that plain SGD trains at mu = 1, and what is left of it below.

    python examples/deep_mixer.py --quick
    python examples/deep_mixer.py                         # scikit-learn's digits
    python examples/deep_mixer.py --data fashion-mnist    # a folder of images
    python examples/deep_mixer.py --data cifar-10 --patch 4 --width 128 --hidden 256 256 \
        --mu 1 --lr 0.5 --batch 256 --steps 117600     # the paper's sizes, not augmented: a GPU

Blocks are x <- MLP(LN(x)^T)^T + mu x across tokens, then x <- MLP(LN(x)) + mu x across channels,
with weights of variance sigma_w^2/fan-in. J^{l,L}, the squared norm of the derivative of the last
block by what enters block l, says how gradients fare on their way back: at mu = 1 it grows as a
power of the depth, below as an exponential, exp((L - l)/xi), faster than by this theory, which
gives all tokens one variance. Every mu trains with each of --lr, and the one of the lowest training
loss is shown. Every network is a file in --out; --resume goes on.
Paper: Doshi, He, Gromov, Critical Initialization of Wide and Deep Neural Networks using Partial
Jacobians, arXiv 2111.12143 (Figure 5: CIFAR-10, learning rate 0.5, 600 epochs)."""

from tinygrok import cli  # first: it sets up BLAS threads before NumPy loads

import _packs  # isort: skip
import functools  # isort: skip
import os  # isort: skip

import _figures_deep_mixer as plots
import _memory as memory
from _deep_mixer import SIZES, correlation_length, expected, measured, needed, train
from _training_maps import load

from tinygrok.engine.device import default_threads

KINDS = ("erf", "gelu", "leaky_relu", "relu", "tanh")
QUICK = {"depth": 12, "steps": 40, "lr": [0.1], "mu": [1.0, 0.5], "measure_every": 10}
TOKENS = 4  # along a side, unless --patch says how many


def arguments(argv=None):
    p = cli.parser("deep_mixer", __doc__)
    add = p.add_argument
    count = cli.integer()
    size = cli.integer(1, 10**4)
    folder = "folder of images (default: scikit-learn's digits)"
    hidden = "units of the MLP across tokens, and across channels"
    lr = "learning rates; of each mu the best in training is shown"
    add("--data", type=os.path.abspath, metavar="DIR", help=folder)
    add("--mu", type=cli.real(0, 1), nargs="+", default=[1.0, 0.9, 0.5], help="residual strengths")
    add("--depth", type=cli.integer(1, 1000), default=100, help="blocks")
    add("--width", type=size, default=32, help="channels")
    add("--hidden", type=size, nargs=2, default=[32, 64], help=hidden)
    add("--patch", type=size, help="pixels of a patch's side (default: for 4 x 4 tokens)")
    add("--activation", default="gelu", choices=KINDS, help="phi")
    add("--sw2", type=cli.positive(), default=2.0, help="sigma_w^2; biases start at 0")
    add("--steps", type=count, default=200, help="optimiser steps")
    add("--batch", type=cli.integer(2, 10**4), default=32, help="images a step")
    add("--lr", type=cli.positive(), nargs="+", default=[0.004, 0.02, 0.1, 0.5], help=lr)
    add("--measure-every", type=count, default=20, help="steps between measurements")
    _packs.add_sweep(add, what="networks")
    p.set_defaults(workers=min(2, default_threads()[0]))
    args = cli.parse(p, argv, QUICK)
    _packs.refuse_twice(args, "mu", "lr")
    args.lr.sort()
    return args


def patch_of(args, image):
    """The side of a patch; refuses one that does not divide the image."""
    H, W, _ = image
    patch = args.patch or max(1, H // TOKENS)
    if H % patch or W % patch:
        raise cli.InputError(f"--patch {patch}: images of {H} x {W} pixels do not split so")
    return patch


def points(args, image):
    """{(mu, lr): point} of every network."""
    common = {name: getattr(args, name) for name in SIZES if name != "patch"}
    common["patch"] = patch_of(args, image)
    return {(mu, lr): common | {"mu": mu, "lr": lr} for mu in args.mu for lr in args.lr}


def best(args, found, mu):
    """The learning rate of the lowest loss at the end; of the latest divergence if all diverge."""

    def rank(lr):
        network = found[mu, lr]
        if network["diverged"] is None:
            return 0, network["train_loss"][-1]
        return 1, -network["diverged"]

    return min(args.lr, key=rank)


def summary(args, found, theory, J):
    """{mu: results}: correlation length, decades of J over the depth, and of every learning rate
    the last loss and accuracies, None where it diverged."""
    results = {}
    for mu in args.mu:
        row = {"correlation_length": theory[mu][0], "lr": best(args, found, mu)}
        row["log10_J_theory"] = float(theory[mu][1][0])
        row["log10_J_measured"] = float(J[mu][0])
        for lr in args.lr:
            network = found[mu, lr]
            names = ("train_loss", "train_accuracy", "test_accuracy")
            whole = network["diverged"] is None
            row[f"lr {lr:g}"] = [network[name][-1] if whole else None for name in names]
        results[f"mu {mu:g}"] = row
    return results


def log_of(found):
    """Columns of the log: a row for every measurement of every network."""
    log: dict = {"mu": [], "lr": []}
    for (mu, lr), network in found.items():
        curves = {name: values for name, values in network.items() if name != "diverged"}
        count = len(curves["step"])
        log["mu"] += [mu] * count
        log["lr"] += [lr] * count
        for name, values in curves.items():
            log[name] = log.get(name, []) + values
    return log


def in_words(args, results):
    """The closing table, a line for every mu and every network."""
    shown = {}
    for mu in args.mu:
        row = results[f"mu {mu:g}"]
        xi = row["correlation_length"]
        length = "a power of the depth" if xi is None else f"xi = {xi:.3g} blocks"
        decades = f"10^{row['log10_J_theory']:.1f} (measured 10^{row['log10_J_measured']:.1f})"
        shown[f"mu {mu:g}"] = f"{length}, J over {args.depth} blocks {decades}"
        for lr in args.lr:
            loss, *accuracies = row[f"lr {lr:g}"]
            text = "diverged"
            if loss is not None:
                text = "loss {:.3f}, train {:.3f}, test {:.3f}".format(loss, *accuracies)
            shown[f"mu {mu:g}, lr {lr:g}"] = text
    return shown


def main(argv=None):
    args = arguments(argv)
    experiment = cli.Experiment(args)
    data = load(args.data)
    networks = points(args, data.train.shape[1:])
    executor = _packs.make_executor(args)
    starts = {mu: networks[mu, args.lr[0]] for mu in args.mu}
    processes = min(max(1, args.workers), len(networks))
    parts = needed(experiment.dev, starts[args.mu[0]], data, processes)
    memory.require(experiment.dev, **parts)
    folder = experiment.open_sweep() / cli.PACKS
    print(f"{len(networks)} networks of {args.depth} blocks, {args.steps} steps each")
    J = {mu: measured(start, data, experiment.dev) for mu, start in starts.items()}
    theory = {mu: (correlation_length(start), expected(start)) for mu, start in starts.items()}
    where = experiment.where(executor)
    work = functools.partial(train, images=args.data, folder=folder, **where)
    packs = [[point] for point in networks.values()]
    results = experiment.sweep(packs, work, executor, "network", "trained")
    if results is None:
        return 1
    found = {key: network for key, (network,) in zip(networks, results, strict=True)}
    summed = summary(args, found, theory, J)

    def figures(out):
        shown = {mu: found[mu, summed[f"mu {mu:g}"]["lr"]] for mu in args.mu}
        plots.deep_mixer(args, shown, summed, theory, J, data.classes, out / "deep_mixer.png")

    experiment.finish(summed, log_of(found), figures, shown=in_words(args, summed))
    return None


if __name__ == "__main__":
    cli.main(main)
