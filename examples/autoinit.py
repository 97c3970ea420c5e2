"""AutoInit: multipliers of the weights, tuned until the Jacobian of every block has unit norm.

    python examples/autoinit.py                   # five networks, one of which He's formula fits
    python examples/autoinit.py --quick
    python examples/autoinit.py --model mlp --data fashion-mnist    # 50 ReLU layers
    python examples/autoinit.py --model resmlp --data DIR    # also mixer, vgg, vgg_bn, patchwork
    python examples/autoinit.py --model mlp --off 0.5 --activation tanh --norm pre --mu 0.9

DIR holds Fashion-MNIST or MNIST (IDX files, gzipped or not) or CIFAR-10 (binary version); else the
images are scikit-learn's 8 x 8 digits. Initialisations that networks train from: "off" is He's with
sigma_w multiplied by --off, "autoinit" the same weights after tuning, beside Kaiming's (He's) and
Xavier's. He's formula is that of plain ReLU networks: there J is 1 in every hidden block without
tuning, and the two are level. Neither formula fits the other four networks of the comparison: GELU
without a norm, residual connections weaker than 1 (Xavier's is near by chance), a patchwork of
activations, norms and residual connections, whose norms bound the signal so that it trains from any
start, and VGG-19 without BatchNorm on images so small that most of a kernel lies beyond the border.
Paper: He, Doshi, Gromov, AutoInit, arXiv 2206.13568.
"""

from pathlib import Path

from tinygrok import cli  # first: it sets up BLAS threads before NumPy loads

import os  # isort: skip

import _figures_autoinit as plots
import _memory as memory
import numpy as np
from _autoinit_networks import IDLE, PRESETS, QUICK, QUICK_SIZE, TITLES, build, networks_of
from _autoinit_training import INITS, MOMENTS, Arm, compare
from _seeds import quartiles

from tinygrok.criticality.jacobian import mean_and_error
from tinygrok.models.vision import NORMS
from tinygrok.ops.activation import activation_help
from tinygrok.tasks import images

TUNABLE = ("weight", "bias", "gain", "shift", "mu")


def arguments(argv=None):
    p = cli.parser("autoinit", __doc__)
    add = p.add_argument
    count = cli.integer()
    size = cli.integer(1, 10**4)
    batch = cli.integer(2, 10**4)
    probes = cli.integer(1, 1000)
    positive = cli.positive()
    tuned = ["weight", "bias"]
    losses = ["log", "square"]
    rates = "learning rates; of several the one in which the first seed trains best"
    folder = "folder of images (default: scikit-learn's digits)"
    shifts = "pixels of random shifts, with flips (0: none)"
    models = sorted(PRESETS)
    add("--model", default="several", choices=models, help="network, with its own defaults")
    add("--data", type=os.path.abspath, metavar="DIR", help=folder)
    add("--width", type=size, help="units, or channels of tokens, or of VGG's first convolution")
    add("--depth", type=cli.integer(0, 1000), help="hidden layers or blocks (VGG has its own)")
    add("--patch", type=count, help="pixels of a patch's side (default: for 16 tokens)")
    add("--activation", help=activation_help())
    add("--norm", default="none", choices=NORMS, help="normalisation of the MLP, and its place")
    add("--mu", type=cli.real(), help="strength of residuals (default 0; ResMLP, Mixer 1)")
    add("--layer-scale", type=positive, default=1.0, help="first LayerScale of ResMLP (paper: 0.1)")
    add("--off", type=positive, default=2.0, help="factor by which sigma_w of the start is off")
    add("--sigma-b", type=cli.real(), default=0.0, help="standard deviation of the biases")
    add("--inits", nargs="+", default=list(INITS), choices=INITS, help="what networks start from")
    add("--jacobian-loss", default="log", choices=losses, help="loss of the tuning")
    add("--tune-steps", type=count, default=100, help="steps of the tuning")
    add("--tune-lr", type=positive, default=0.1, help="its learning rate (of log-multipliers)")
    add("--tune", nargs="+", default=tuned, choices=TUNABLE, help="what gets multipliers")
    add("--probes", type=probes, default=2, help="unit vectors a block, image and step")
    add("--tune-batch", type=batch, default=32, help="images of the tuning")
    add("--optimizer", choices=list(MOMENTS), help="sgd: momentum 0.9")
    add("--lr", type=positive, nargs="+", help=rates)
    add("--clip", type=positive, help="longest gradient; any where there is no default")
    add("--weight-decay", type=cli.real(), default=1e-4, help="weight decay of kernels")
    add("--augment", type=cli.integer(0, 8), default=0, help=shifts)
    add("--steps", type=cli.integer(0), help="optimiser steps of every network; 0: tune only")
    add("--batch", type=batch, help="images a step")
    add("--seeds", type=cli.integer(1, 100), default=1, help="networks of every initialisation")
    add("--measure-every", type=count, default=100, help="steps between measurements")
    cli.add_checkpoints(p, 60.0, kept=False)
    model = cli.chosen(p, argv).model
    p.set_defaults(**PRESETS[model])
    args = cli.parse(p, argv, QUICK | QUICK_SIZE[model])
    cli.refuse_idle(args, f"means nothing with --model {model}", *IDLE[model])
    if args.steps == 0:
        only = ("lr", "clip", "weight_decay", "augment", "optimizer", "measure_every")
        cli.refuse_idle(args, "needs --steps: 0 tunes only", *only)
    return args


# -- results ---------------------------------------------------------------------------------------


def measured(found):
    """The results of one network."""
    before, after = (found.norms[init] for init in ("off", "autoinit"))
    test = {init: found.accuracies(init, "test") for init in found.rates}
    train = {init: found.accuracies(init, "train") for init in found.rates}
    return {
        "apjn_before": before[1].tolist(),
        "apjn_after": after[1].tolist(),
        "jll_before": before[0],
        "jll_after": after[0],
        "apjn_largest_error": float(np.abs(after[1] - 1).max()),
        "accuracy": {init: float(np.mean(x)) for init, x in test.items()},
        "accuracy_seeds": test,
        "train_accuracy": {init: float(np.mean(x)) for init, x in train.items()},
        "lr": dict(found.rates),
        "tuning_seconds": found.starts[0].seconds,
    }


def shown(found, results):
    """What is printed of one network."""
    rows = {name: x for name, x in results.items() if not isinstance(x, list | dict)}
    for init, lr in found.rates.items():
        J = np.exp(np.log(found.norms[init][1]).mean())
        each = " ".join(f"{accuracy:.3f}" for accuracy in results["accuracy_seeds"][init])
        train = results["train_accuracy"][init]
        rows[f"{init}, lr {lr:g}"] = f"J {J:.2f}, train {train:.3f}, test {each}"
    if {"kaiming", "autoinit"} <= set(found.rates) and len(found.starts) > 1:
        # In a plain ReLU network both are critical, and differ by the luck of a seed.
        both = results["accuracy_seeds"]
        differences = np.subtract(both["autoinit"], both["kaiming"])
        rows["autoinit - kaiming"] = "{:+.3f} +- {:.3f}".format(*mean_and_error(differences))
    return rows


def summary(outcomes):
    """The results of several networks: of each, by initialisation, J from the first block to the
    last, the chosen learning rate, and test accuracies."""
    results = {}
    for name, found in outcomes.items():
        row = measured(found)
        own = {key: row[key] for key in ("jll_before", "jll_after", "lr", "accuracy_seeds")}
        own["J_product"] = {init: float(np.prod(J)) for init, (_, J) in found.norms.items()}
        own["accuracy_quartiles"] = {
            init: quartiles(x).tolist() for init, x in row["accuracy_seeds"].items()
        }
        results[name] = own
    return results


def show_table(args, results):
    """The closing tables of several networks."""
    seeds = f"median (first to third quartile) of {args.seeds} seeds"
    accuracies = {}
    products = {}
    for name, row in results.items():
        quarters = row["accuracy_quartiles"].values()
        accuracies[name] = [f"{mid:.2f} ({low:.2f} to {high:.2f})" for low, mid, high in quarters]
        products[name] = [f"{row['J_product'][init]:.3g}" for init in args.inits]
    tables = {f"test accuracy, {seeds}": accuracies, "product of J over all blocks": products}
    for title, rows in tables.items():
        print(f"\n{title}")
        for name, texts in {"": args.inits, **rows}.items():
            print(f"{name:<12}" + "".join(f"{text:<22}" for text in texts))


def main(argv=None):
    args = arguments(argv)
    experiment = cli.Experiment(args)
    loaded = images.load(None if args.data is None else Path(args.data))
    data = images.normalised(loaded)
    image = data.train.shape[1:]
    settings = networks_of(args)
    nets = {name: build(own, image, loaded.classes) for name, own in settings.items()}
    for name, net in nets.items():
        kinds = {key.rpartition(".")[2] for key in (*net.shapes, *net.buffers)}
        if not kinds.intersection(args.tune):
            raise cli.InputError(f"--tune: the network has no {' or '.join(args.tune)}")
        memory.require(experiment.dev, **memory.images(experiment.dev, settings[name], net, image))
    if args.model == "several":
        experiment.open_sweep()
    else:
        experiment.open(state=Arm("", args.inits[0], args.lr[0], 0).file)
    outcomes = {}
    for name, net in nets.items():
        print(f"{len(data.train)} images of {image}; {name or args.model}: {net!r}")
        outcomes[name] = compare(experiment, settings[name], name, net, loaded, data)
        if outcomes[name] is None:
            return 130
    if args.model == "several":
        finish_several(experiment, outcomes)
    else:
        finish_one(experiment, outcomes[""])
    return None


def finish_one(experiment, found):
    """Results, figure and closing table of one network."""
    args = experiment.args
    results = measured(found)

    def figures(out):
        tunings = [start.history["loss"] for start in found.starts]
        tests = {init: found.runs(init) for init in found.rates}
        title = f"{args.model}; off: He's times {args.off:g}, autoinit: the same after tuning"
        loss = f"Jacobian {args.jacobian_loss} loss"
        names = (title, loss, f"{args.probes} probes", found.classes)
        theory = found.starts[0].predicted(args)
        plots.autoinit(found.norms, tunings, theory, tests, names, out / "autoinit.png")

    history = found.starts[0].history
    log = {"step": list(range(len(history["loss"]))), **history}
    experiment.finish(results, log, figures, shown=shown(found, results))


def finish_several(experiment, outcomes):
    """Results, figure and closing tables of several networks."""
    args = experiment.args
    results = summary(outcomes)

    def figures(out):
        plots.several(outcomes, TITLES, args.steps, out / "autoinit.png")

    log = {name: [] for name in ("network", "init", "seed", "lr", "test_accuracy")}
    for network, row in results.items():
        for init, accuracies in row["accuracy_seeds"].items():
            for seed, accuracy in enumerate(accuracies):
                values = (network, init, seed, row["lr"][init], accuracy)
                for column, value in zip(log.values(), values, strict=True):
                    column.append(value)
    experiment.write(results, log, figures)
    if args.steps:
        show_table(args, results)
    experiment.list_files()


if __name__ == "__main__":
    cli.main(main)
