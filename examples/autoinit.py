"""AutoInit: multipliers of the weights, tuned until the Jacobian of every block has unit norm.

    python examples/autoinit.py --quick                  # a deep MLP on scikit-learn's 8 x 8 digits
    python examples/autoinit.py --data fashion-mnist     # 50 ReLU layers, sigma_w twice too large
    python examples/autoinit.py --model resmlp --data DIR    # also mixer, vgg, vgg_bn
    python examples/autoinit.py --off 0.5 --activation tanh --norm pre --mu 0.9

DIR holds Fashion-MNIST or MNIST (IDX files, gzipped or not) or CIFAR-10 (binary version).
Initialisations that networks train from: "off" is He's with sigma_w multiplied by --off, "autoinit"
the same weights after tuning, beside Kaiming's and Xavier's. Paper: He, Doshi, Gromov, AutoInit,
arXiv 2206.13568.
"""

from pathlib import Path

from tinygrok import cli  # first: it sets up BLAS threads before NumPy loads

import itertools  # isort: skip
import os  # isort: skip

import _figures_autoinit as plots
import _memory as memory
import numpy as np
from _autoinit_networks import IDLE, PRESETS, QUICK, QUICK_SIZE, Start, build

from tinygrok.criticality.jacobian import mean_and_error
from tinygrok.engine.optim import cosine
from tinygrok.models.vision import NORMS
from tinygrok.ops.activation import activation_help
from tinygrok.tasks import images
from tinygrok.training.checkpoint import load_training
from tinygrok.training.images import ImageTraining
from tinygrok.training.loop import NonFiniteLoss
from tinygrok.training.parallel import world

MOMENTS = {"sgd": {"momentum": 0.9}, "adamw": {"betas": (0.9, 0.999)}}
TUNABLE = ("weight", "bias", "gain", "shift", "mu")
INITS = ("off", "kaiming", "xavier", "autoinit")


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
    rates = "learning rates; of several the best in training counts"
    folder = "folder of images (default: scikit-learn's digits)"
    shifts = "pixels of random shifts, with flips (0: none)"
    add("--model", default="mlp", choices=sorted(PRESETS), help="network, with its own defaults")
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
        cli.refuse_idle(args, "needs --steps: 0 tunes only", "lr", "weight_decay", "augment")
    return args


def make_run(experiment, net, data, weights, lr, seed):
    args = experiment.args
    return ImageTraining.on_task(
        net,
        data,
        args.batch,
        seed,
        lr=lr,
        weight_decay=args.weight_decay,
        shifts=args.augment,
        weights=weights,
        device=experiment.dev,
        optimizer=args.optimizer,
        schedule=cosine(args.steps // 20, args.steps),
        **MOMENTS[args.optimizer],
    )


def train(experiment, net, data, starts):
    """{(init, lr, seed): history, or None where the loss ceased to be finite}; None when
    interrupted."""
    args = experiment.args
    config = cli.config(args)
    arms = list(itertools.product(range(args.seeds), args.inits, args.lr))
    histories = {}
    progress = cli.Progress(len(arms) * args.steps, every=5.0)
    with cli.Interrupt() as interrupt:
        for i, (s, init, lr) in enumerate(arms):
            run = make_run(experiment, net, data, starts[s].weights[init], lr, args.seed + s)
            arm = {"arm": f"{init}-{lr:g}-{s}"}
            path = experiment.out / f"{arm['arm']}.npz"
            if args.resume and path.exists():
                load_training(path, run, config | arm, args.defaults | arm)
            if not run.whole:  # it has diverged
                histories[init, lr, s] = None
                continue

            def show(row, before=i * args.steps, init=init):
                train = f"train {row['train_accuracy']:.3f} ({row['train_loss']:.3f})"
                test = f"test {row['test_accuracy']:.3f}"
                progress(before + row["step"], f"{init:<9} {train}  {test}")

            save = experiment.saver(path, **arm)
            when = (args.steps, args.measure_every, show, save, args.save_seconds, interrupt)
            try:
                run.fit(*when)
            except NonFiniteLoss as error:
                print(f"{init}, lr {lr:g}: {error}")
                save(run)
                histories[init, lr, s] = None
                continue
            if run.t < args.steps:
                print(f"interrupted; the checkpoints are in {experiment.out}{cli.to_go_on()}")
                return None
            histories[init, lr, s] = run.history
    progress.close()
    return histories


def best(args, histories, init, classes):
    """(learning rate with the best training accuracy, training and test accuracies of its seeds);
    a network that diverged has the accuracy of chance"""

    def accuracies(lr, split):
        found = [histories[init, lr, s] for s in range(args.seeds)]
        return [float(h[f"{split}_accuracy"][-1]) if h else 1 / classes for h in found]

    lr = max(args.lr, key=lambda lr: np.mean(accuracies(lr, "train")))
    return lr, accuracies(lr, "train"), accuracies(lr, "test")


def measured(start, norms, chosen):
    """The results; norms {initialisation: (Jacobian loss, J of every block)}."""
    before, after = (norms[init] for init in ("off", "autoinit"))
    results = {
        "apjn_before": before[1].tolist(),
        "apjn_after": after[1].tolist(),
        "jll_before": before[0],
        "jll_after": after[0],
        "apjn_largest_error": float(np.abs(after[1] - 1).max()),
        "accuracy": {init: float(np.mean(test)) for init, (_, _, test) in chosen.items()},
        "accuracy_seeds": {init: test for init, (_, _, test) in chosen.items()},
        "train_accuracy": {init: float(np.mean(train)) for init, (_, train, _) in chosen.items()},
        "lr": {init: lr for init, (lr, _, _) in chosen.items()},
        "tuning_seconds": start.seconds,
    }
    shown = {name: x for name, x in results.items() if not isinstance(x, list | dict)}
    for init, (lr, train_accuracies, test) in chosen.items():
        J = np.exp(np.log(norms[init][1]).mean())
        each = " ".join(f"{accuracy:.3f}" for accuracy in test)
        train = np.mean(train_accuracies)
        shown[f"{init}, lr {lr:g}"] = f"J {J:.2f}, train {train:.3f}, test {each}"
    if {"kaiming", "autoinit"} <= set(chosen) and len(chosen["kaiming"][2]) > 1:
        # In a plain ReLU network both are critical, and differ by the luck of a seed.
        differences = np.subtract(chosen["autoinit"][2], chosen["kaiming"][2])
        shown["autoinit - kaiming"] = "{:+.3f} +- {:.3f}".format(*mean_and_error(differences))
    return results, shown


def main(argv=None):
    args = arguments(argv)
    experiment = cli.Experiment(args)
    if world().size > 1:
        raise cli.InputError("autoinit trains many small networks: start it without mpirun")
    loaded = images.load(None if args.data is None else Path(args.data))
    data = images.normalised(loaded)
    net = build(args, data.train.shape[1:], loaded.classes)
    kinds = {name.rpartition(".")[2] for name in (*net.shapes, *net.buffers)}
    if not kinds.intersection(args.tune):
        raise cli.InputError(f"--tune: the network has no {' or '.join(args.tune)}")
    needed = memory.images(experiment.dev, args, net, data.train.shape[1:])
    memory.require(experiment.dev, **needed)
    experiment.open(state=f"{args.inits[0]}-{args.lr[0]:g}-0.npz")
    print(f"{len(data.train)} images of {data.train.shape[1:]}; {args.model}: {net!r}")
    starts = [Start(args, experiment.dev, net, data, args.seed + s) for s in range(args.seeds)]
    start = starts[0]
    norms = {init: start.jacobians(init) for init in ("off", "autoinit", "kaiming", "xavier")}
    loss = f"Jacobian {args.jacobian_loss} loss"
    change = f"{norms['off'][0]:.4g} -> {norms['autoinit'][0]:.4g}"
    print(f"tuned in {start.seconds:.1f} s: {loss} {change}")
    histories = train(experiment, net, loaded, starts) if args.steps else {}
    if histories is None:
        return 130
    inits = args.inits if histories else []
    chosen = {init: best(args, histories, init, net.classes) for init in inits}
    results, shown = measured(start, norms, chosen)

    def figures(out):
        tunings = [s.history["loss"] for s in starts]
        tests = {}
        for init, (lr, _, _) in chosen.items():
            tests[init] = [histories[init, lr, s] for s in range(args.seeds)]
        title = f"{args.model}; off: He's times {args.off:g}, autoinit: the same after tuning"
        names = (title, loss, f"{args.probes} probes", net.classes)
        plots.autoinit(norms, tunings, start.predicted(args), tests, names, out / "autoinit.png")

    log = {"step": list(range(len(start.history["loss"]))), **start.history}
    experiment.finish(results, log, figures, shown=shown)
    return None


if __name__ == "__main__":
    cli.main(main)
