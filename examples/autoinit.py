"""AutoInit: multipliers of the weights are tuned until the Jacobian of every block has unit norm;
then networks train from it.

    python examples/autoinit.py --quick                                       # a deep MLP on scikit-learn's 8 x 8 digits
    python examples/autoinit.py --data /usr/share/datasets/fashion-mnist      # 50 ReLU layers, sigma_w twice too large
    python examples/autoinit.py --model resmlp --data DIR                     # ResMLP; also mixer, vgg, vgg_bn
    python examples/autoinit.py --off 0.5 --activation tanh --norm pre --mu 0.9

DIR holds Fashion-MNIST or MNIST (IDX files, gzipped or not) or CIFAR-10 (binary version).
Initialisations: "off" is He's with sigma_w multiplied by --off, "autoinit" the same weights after
tuning, beside Kaiming's and Xavier's. Paper: He, Doshi, Gromov, AutoInit, arXiv 2206.13568.
"""

import time
from pathlib import Path

from tinygrok import cli  # first: it sets up BLAS threads before NumPy loads

import numpy as np  # isort: skip

from tinygrok.criticality.autoinit import autoinit
from tinygrok.engine.errors import InputError
from tinygrok.engine.optim import SGD, AdamW, cosine
from tinygrok.engine.params import Arena
from tinygrok.engine.rng import generator
from tinygrok.models import vision
from tinygrok.tasks import images
from tinygrok.training.checkpoint import load_training, save_training
from tinygrok.training.images import ImageTraining
from tinygrok.training.loop import NonFiniteLoss, fit
from tinygrok.training.parallel import world

PRESETS = {  # what the flags may change
    "mlp": {
        "width": 100,
        "depth": 50,
        "activation": "relu",
        "optimizer": "sgd",
        "lr": [0.01],
        "steps": 1500,
        "batch": 128,
    },
    "resmlp": {
        "width": 64,
        "depth": 6,
        "activation": "gelu",
        "optimizer": "adamw",
        "lr": [2e-3],
        "steps": 400,
        "batch": 64,
    },
    "vgg": {
        "width": 8,
        "depth": 0,
        "activation": "relu",
        "optimizer": "sgd",
        "lr": [0.02],
        "steps": 1000,
        "batch": 64,
    },
}
PRESETS["mixer"], PRESETS["vgg_bn"] = PRESETS["resmlp"], PRESETS["vgg"] | {"lr": [0.05]}
QUICK = {"steps": 300, "batch": 64, "tune_steps": 60}
QUICK_SIZE = {
    "mlp": {"width": 50, "depth": 20},
    "resmlp": {"width": 32, "depth": 2, "steps": 100},
    "vgg": {"steps": 60},
}
QUICK_SIZE["mixer"], QUICK_SIZE["vgg_bn"] = QUICK_SIZE["resmlp"], QUICK_SIZE["vgg"]
TUNABLE = ("weight", "bias", "gain", "shift", "mu")
INITS = ("off", "kaiming", "xavier", "autoinit")


def arguments(argv=None):
    p = cli.parser("autoinit", __doc__.splitlines()[0])
    p.add_argument(
        "--model",
        default="mlp",
        choices=sorted(PRESETS),
        help="network, with settings that other flags may change",
    )
    p.add_argument(
        "--data",
        default=None,
        metavar="DIR",
        help="folder of images (default: scikit-learn's digits)",
    )
    p.add_argument(
        "--width",
        type=cli.integer(),
        help="units, channels of the tokens, channels of VGG's first convolution",
    )
    p.add_argument("--depth", type=cli.integer(0), help="hidden layers or blocks (VGG has its own)")
    p.add_argument(
        "--patch",
        type=cli.integer(),
        default=None,
        help="pixels of a patch's side (default: for 16 tokens)",
    )
    p.add_argument("--activation", help="relu, gelu, gelu_tanh, tanh, erf")
    p.add_argument(
        "--norm",
        default="none",
        choices=vision.NORMS,
        help="normalisation of the MLP, and where it stands",
    )
    p.add_argument(
        "--mu",
        type=cli.real(),
        default=None,
        help="strength of residual connections (default 0; ResMLP, Mixer 1)",
    )
    p.add_argument(
        "--layer-scale",
        type=cli.real(0, None, True),
        default=1.0,
        help="first LayerScale of ResMLP (paper: 0.1)",
    )
    p.add_argument(
        "--off",
        type=cli.real(0, None, True),
        default=2.0,
        help="factor by which sigma_w of the start is off",
    )
    p.add_argument(
        "--sigma-b", type=cli.real(), default=0.0, help="standard deviation of the biases"
    )
    p.add_argument(
        "--inits",
        nargs="+",
        default=list(INITS),
        choices=INITS,
        help="initialisations to train from",
    )
    p.add_argument(
        "--jacobian-loss", default="log", choices=["log", "square"], help="loss of the tuning"
    )
    p.add_argument("--tune-steps", type=cli.integer(), default=100, help="steps of the tuning")
    p.add_argument(
        "--tune-lr",
        type=cli.real(0, None, True),
        default=0.1,
        help="its learning rate (of log-multipliers)",
    )
    p.add_argument(
        "--tune",
        nargs="+",
        default=["weight", "bias"],
        choices=TUNABLE,
        help="what gets multipliers",
    )
    p.add_argument(
        "--probes", type=cli.integer(), default=2, help="unit vectors a block, image and step"
    )
    p.add_argument("--tune-batch", type=cli.integer(2), default=32, help="images of the tuning")
    p.add_argument("--optimizer", choices=["sgd", "adamw"], help="sgd: momentum 0.9")
    p.add_argument(
        "--lr",
        type=cli.real(0, None, True),
        nargs="+",
        help="learning rates; of several the best in training counts",
    )
    p.add_argument("--weight-decay", type=cli.real(), default=1e-4, help="weight decay of kernels")
    p.add_argument(
        "--augment",
        type=cli.integer(0, 8),
        default=0,
        help="pixels of random shifts, with flips (0: none)",
    )
    p.add_argument(
        "--steps", type=cli.integer(0), help="optimiser steps of every network; 0: tune only"
    )
    p.add_argument("--batch", type=cli.integer(2), help="images a step")
    p.add_argument(
        "--seeds", type=cli.integer(), default=1, help="networks of every initialisation"
    )
    p.add_argument(
        "--measure-every", type=cli.integer(), default=100, help="steps between measurements"
    )
    p.add_argument(
        "--save-seconds", type=cli.real(), default=60.0, help="seconds between checkpoints"
    )
    p.add_argument("--resume", action="store_true", help="go on from the checkpoints in --out")
    model = p.parse_known_args(argv)[0].model
    p.set_defaults(**PRESETS[model])
    return cli.parse(p, argv, QUICK | QUICK_SIZE[model])


def build(args, image):
    """The network, for images of a shape."""
    H, W, C = image
    if args.model == "mlp":
        return vision.deep_mlp(
            H * W * C, args.width, args.depth, 10, args.activation, args.norm, args.mu or 0.0
        )
    if args.model.startswith("vgg"):
        if 64 % args.width:
            raise InputError(
                f"--width {args.width}: VGG's first convolution has 64 channels or a divisor of that"
            )
        return vision.vgg(
            image,
            10,
            divide=64 // args.width,
            batchnorm=args.model == "vgg_bn",
            activation=args.activation,
        )
    mu = 1.0 if args.mu is None else args.mu
    patch = args.patch or max(
        n for n in (1, 2, 4, 7, 8) if not (H % n or W % n) and 4 * n <= H
    )  # 16 tokens
    sizes = {
        "patch": patch,
        "width": args.width,
        "depth": args.depth,
        "activation": args.activation,
        "mu": mu,
    }
    if args.model == "mixer":
        return vision.mixer(image, 10, hidden=(2 * args.width, 2 * args.width), **sizes)
    return vision.resmlp(image, 10, hidden=4 * args.width, scale=args.layer_scale, **sizes)


class Start:
    """First weights by initialisation for one seed, and the tuning of "off" to "autoinit"."""

    def __init__(self, args, dev, net, data, seed):
        self.args, self.dev, self.net, self.rng = args, dev, net, generator(seed, "probes")
        self.x = data.train[
            self.rng.choice(len(data.train), min(args.tune_batch, len(data.train)), replace=False)
        ]
        draw = lambda *settings, **more: net.init(generator(seed, "init"), *settings, **more)  # noqa: E731
        self.weights = {
            "off": draw(args.off * 2**0.5, args.sigma_b),
            "kaiming": draw(2**0.5),
            "xavier": draw(1.0, fan="mean"),
        }
        began = time.perf_counter()
        self.weights["autoinit"], self.history = autoinit(
            dev,
            net,
            self.weights["off"],
            self.x,
            self.rng,
            args.tune_steps,
            args.tune_lr,
            args.jacobian_loss,
            probes=args.probes,
            tune=tuple(args.tune),
            schedule=cosine(0, args.tune_steps),
        )
        self.seconds = time.perf_counter() - began

    def jacobians(self, init, probes=64):
        """(Jacobian loss, J of every block) from many probes."""
        _, h = autoinit(
            self.dev,
            self.net,
            self.weights[init],
            self.x,
            self.rng,
            0,
            loss=self.args.jacobian_loss,
            probes=probes,
        )
        return h["loss"][0], h["apjn"][0]


def training(args, dev, net, data, weights, lr, seed):
    params, grads = Arena(dev, net.shapes), Arena(dev, net.shapes)
    params.load({n: weights[n] for n in net.shapes})
    schedule = cosine(args.steps // 20, args.steps)
    options = {
        "lr": lr,
        "weight_decay": args.weight_decay,
        "schedule": schedule,
        "no_decay": net.no_decay,
    }
    momentum = {"momentum": 0.9} if args.optimizer == "sgd" else {"betas": (0.9, 0.999)}
    optimizer = {"sgd": SGD, "adamw": AdamW}[args.optimizer](
        dev, params, grads, **options, **momentum
    )

    def draw(rng):
        pick = rng.integers(0, len(data.train), args.batch)
        x = data.train[pick]
        return images.augment(rng, x, args.augment) if args.augment else x, data.train_labels[pick]

    part = slice(0, 2000)  # of the training images, to be measured
    sets = {
        "train": (data.train[part], data.train_labels[part]),
        "test": (data.test, data.test_labels),
    }
    run = ImageTraining(dev, net, optimizer, draw, sets, seed)
    run.objective.buffers.load(
        net.init_buffers() | {n: weights[n] for n in net.buffers if n in weights}
    )
    return run


def train(args, dev, net, data, starts, out):
    """{(init, lr, seed): run, or None where the loss ceased to be finite}; None when
    interrupted."""
    arms = [(init, lr, s) for s in range(args.seeds) for init in args.inits for lr in args.lr]
    runs, progress = {}, cli.Progress(len(arms) * args.steps, every=5.0)
    with cli.Interrupt() as interrupt:
        for i, (init, lr, s) in enumerate(arms):
            run, path = (
                training(args, dev, net, data, starts[s].weights[init], lr, args.seed + s),
                out / f"{init}-{lr:g}-{s}.npz",
            )
            if args.resume and path.exists():
                load_training(path, run, cli.config(args))

            def show(row, i=i, init=init):
                text = f"{init:<9} train {row['train_accuracy']:.3f} ({row['train_loss']:.3f})  test {row['test_accuracy']:.3f}"
                progress(i * args.steps + row["step"], text)

            save = lambda run, path=path: save_training(path, run, cli.config(args))  # noqa: E731
            try:
                done = fit(
                    run, args.steps, args.measure_every, show, save, args.save_seconds, interrupt
                )
            except NonFiniteLoss as error:
                print(f"{init}, lr {lr:g}: {error}")
                save(run)
                done, run = True, None
            if not done:
                print(
                    f"interrupted; the checkpoints are in {out}. To go on:\n  {cli.resume_hint()}"
                )
                return None
            runs[init, lr, s] = run
    progress.close()
    return runs


def best(args, runs, init):
    """The learning rate with the best training accuracy, and the test accuracies of its seeds
    (chance where it diverged)."""

    def accuracy(lr, s, which):
        run = runs[init, lr, s]
        return 0.1 if run is None else float(run.history[f"{which}_accuracy"][-1])

    lr = max(args.lr, key=lambda lr: np.mean([accuracy(lr, s, "train") for s in range(args.seeds)]))
    return lr, *([accuracy(lr, s, which) for s in range(args.seeds)] for which in ("train", "test"))


def draw(args, starts, before, after, runs, chosen, path):
    from tinygrok.plots import style as plots

    colors = dict(zip(INITS, (plots.TRAIN, plots.ORANGE, plots.GREEN, plots.TEST), strict=True))
    fig, (left, middle, right) = plots.panels(3, 4.3, 3.8)
    left.semilogy(
        before, ".", color=plots.TRAIN, label=f"before: He's $\\sigma_w$ times {args.off:g}"
    )
    left.semilogy(after, ".", color=plots.TEST, label="after")
    left.axhline(1, color="0.6", lw=0.8, zorder=0)
    plots.label(
        left, 8, xlabel="block", ylabel="$J$", title=f"Jacobian norm of the blocks, {args.model}"
    )
    for start in starts:
        middle.semilogy(start.history["loss"], color=plots.TEST, alpha=0.8)
    if (
        args.model == "mlp"
        and (args.activation, args.norm, args.mu or 0) == ("relu", "none", 0)
        and args.jacobian_loss == "log"
    ):
        logs, predicted, cooling = (
            np.log(starts[0].history["apjn"][0]),
            [],
            cosine(0, args.tune_steps),
        )
        for t in range(
            args.tune_steps
        ):  # every block alone: ln J changes by twice the change of ln a
            predicted.append(0.5 * (logs**2).sum())
            logs = logs + 2 * np.clip(-2 * args.tune_lr * cooling(t + 1) * logs, -0.3, 0.3)
        middle.semilogy(
            predicted, "--", color="0.3", label="predicted, without the noise of the probes"
        )
        middle.set_ylim(min(starts[0].history["loss"]) / 3)
    plots.label(
        middle,
        8,
        xlabel="step of the tuning",
        ylabel=f"Jacobian {args.jacobian_loss} loss",
        title="tuning",
    )
    for (init, lr, s), run in runs.items():
        if lr == chosen[init][0]:
            history = run.history if run else {"step": [], "test_accuracy": []}
            name = None if s else init if run else f"{init}: not finite"
            right.plot(history["step"], history["test_accuracy"], color=colors[init], label=name)
    plots.label(
        right,
        8,
        xlabel="step of the training",
        ylabel="test accuracy",
        title="training",
        ylim=plots.SHARE,
    )
    plots.save(fig, path)


def main(argv=None):
    args = arguments(argv)
    dev = cli.device(args)
    if world().size > 1:
        raise InputError(
            "autoinit trains many small networks, each in one process: start it without mpirun"
        )
    data = images.normalised(images.load(None if args.data is None else Path(args.data)))
    net = build(args, data.train.shape[1:])
    if not any(name.endswith(f".{t}") for name in (*net.shapes, *net.buffers) for t in args.tune):
        raise InputError(f"--tune: the network has no {' or '.join(args.tune)}")
    out = cli.output_folder(args, args.resume, f"{args.inits[0]}-{args.lr[0]:g}-0.npz")
    print(f"{len(data.train)} images of {data.train.shape[1:]}; {args.model}: {net!r}")
    began = time.perf_counter()
    starts = [Start(args, dev, net, data, args.seed + s) for s in range(args.seeds)]
    (jll_before, before), (jll_after, after) = map(starts[0].jacobians, ("off", "autoinit"))
    print(
        f"tuned in {starts[0].seconds:.1f} s: Jacobian log loss {jll_before:.4g} -> {jll_after:.4g}"
    )
    runs = train(args, dev, net, data, starts, out) if args.steps else {}
    if runs is None:
        return 130
    chosen = {init: best(args, runs, init) for init in args.inits} if runs else {}
    results = {
        "apjn_before": before.tolist(),
        "apjn_after": after.tolist(),
        "jll_before": jll_before,
        "jll_after": jll_after,
        "apjn_largest_error": float(np.abs(after - 1).max()),
        "accuracy": {init: float(np.mean(test)) for init, (_, _, test) in chosen.items()},
        "accuracy_seeds": {init: test for init, (_, _, test) in chosen.items()},
        "train_accuracy": {init: float(np.mean(train)) for init, (_, train, _) in chosen.items()},
        "lr": {init: lr for init, (lr, _, _) in chosen.items()},
        "tuning_seconds": starts[0].seconds,
    }
    cli.write_log(out, {"step": list(range(len(starts[0].history["loss"]))), **starts[0].history})
    cli.write_run(out, args, dev, time.perf_counter() - began, results)
    if cli.plotting(args):
        draw(args, starts, before, after, runs, chosen, out / "autoinit.png")
    show = {k: v for k, v in results.items() if not isinstance(v, list | dict)}
    for init, (lr, train_accuracy, test) in chosen.items():
        show[f"{init}, lr {lr:g}"] = f"train {np.mean(train_accuracy):.3f}, test " + " ".join(
            f"{a:.3f}" for a in test
        )
    cli.report(out, show, {}, "")


if __name__ == "__main__":
    cli.main(main)
