"""Grokking modular addition: a two-layer quadratic network learns (n1 + n2) mod p from half of the
table.

    python examples/grok_addition.py                                            # p = 97, width 500
    python examples/grok_addition.py --quick                                    # p = 59, width 200, decay 2
    python examples/grok_addition.py --loss mse --weight-decay 5 --steps 100    # as in the papers

The network f = W phi(U1[n1] + U2[n2]), phi(x) = x^2, first memorises its training pairs, and only
later answers the pairs it never saw. Its neurons end as cosines of one frequency each: look at the
figure. Papers: Gromov, arXiv 2301.02679; Doshi et al., arXiv 2310.13061 (Figure 2) and 2406.03495.
"""

import time

from tinygrok import cli  # first: it sets up BLAS threads before NumPy loads

import numpy as np  # isort: skip

from tinygrok.engine.optim import AdamW
from tinygrok.engine.params import Arena
from tinygrok.engine.rng import generator
from tinygrok.models.mlp import TwoLayerNet
from tinygrok.probes.fourier import neuron_ipr
from tinygrok.probes.phases import first_step
from tinygrok.tasks.modular import TASKS
from tinygrok.training.loop import Evaluation, Training

QUICK = {"p": 59, "width": 200, "weight_decay": 2.0}
PAPER = {
    "train_accuracy": "1.000",
    "test_accuracy": "1.000",
    "train_loss": "0.0008",
    "test_loss": "0.0010",
    "ipr_mean": "0.85",
}


def arguments(argv=None):
    p = cli.parser("grok_addition", __doc__.splitlines()[0])
    p.add_argument(
        "--task",
        default="addition",
        choices=sorted(TASKS),
        help="function of (n1, n2) mod p to learn",
    )
    p.add_argument("--p", type=cli.integer(2, 1000), default=97, help="modulus")
    p.add_argument("--width", type=cli.integer(), default=500, help="hidden neurons")
    p.add_argument(
        "--train-frac",
        type=cli.real(0, 1, True, True),
        default=0.5,
        help="share of the table to train on",
    )
    p.add_argument(
        "--activation",
        default="square",
        help="square, power<k>, relu, leaky_relu, gelu, gelu_tanh, tanh, erf",
    )
    p.add_argument(
        "--loss",
        default="cross_entropy",
        choices=["mse", "cross_entropy"],
        help="the papers use mse",
    )
    p.add_argument("--steps", type=cli.integer(), default=400, help="optimiser steps")
    p.add_argument(
        "--batch-size",
        type=cli.integer(),
        default=None,
        help="minibatch size (default: full batch)",
    )
    p.add_argument(
        "--lr", type=cli.real(0, None, True), default=0.01, help="learning rate of AdamW"
    )
    p.add_argument(
        "--weight-decay", type=cli.real(), default=1.0, help="decoupled weight decay (papers: 5)"
    )
    p.add_argument(
        "--dropout",
        type=cli.real(0, 1, False, True),
        default=0.0,
        help="dropout rate of the pre-activations",
    )
    p.add_argument(
        "--init-scale",
        type=cli.real(0, None, True),
        default=1.0,
        help="multiplies the papers' initial weights",
    )
    p.add_argument("--log-every", type=cli.integer(), default=5, help="steps between measurements")
    p.add_argument(
        "--save-seconds", type=cli.real(), default=30.0, help="seconds between checkpoints"
    )
    p.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    return cli.parse(p, argv, QUICK)


def build(args, dev):
    """Task, network, optimiser and data of a run: every random draw comes from a named stream of
    the seed."""
    task = TASKS[args.task](args.p)
    train, test = task.split(args.train_frac, generator(args.seed, "split"))
    net = TwoLayerNet(args.p, args.width, activation=args.activation)
    params, grads = Arena(dev, net.shapes), Arena(dev, net.shapes)
    weights = net.init(generator(args.seed, "init"))
    params.load({name: args.init_scale * w for name, w in weights.items()})
    optimizer = AdamW(
        dev, params, grads, lr=args.lr, betas=(0.9, 0.98), weight_decay=args.weight_decay
    )
    inputs = task.inputs(train)
    return Training(
        dev,
        net,
        optimizer,
        [(inputs, task.labels(inputs))],
        Evaluation.of_task(task, train=train, test=test),
        args.seed,
        args.loss,
        args.batch_size,
        args.dropout,
    )


def main(argv=None):
    args = arguments(argv)
    dev = cli.device(args)
    run = build(args, dev)
    out = cli.start(args, run)
    sizes = {name: mask.sum() for name, (mask, _) in run.evaluation.splits.items()}
    print(
        f"{args.task} mod {args.p}: {sizes['train']} training pairs, {sizes['test']} held out; network {run.model!r}"
    )

    began = time.perf_counter()

    def text(row):
        return "  ".join(
            f"{s} loss {row[f'{s}_loss']:.5f} acc {row[f'{s}_accuracy']:.4f}"
            for s in ("train", "test")
        )

    code = cli.train(args, run, out, args.log_every, text)
    if code is not None:
        return code

    weights, history = run.params.to_host(), run.history
    results = {
        "train_accuracy": float(history["train_accuracy"][-1]),
        "test_accuracy": float(history["test_accuracy"][-1]),
        "step_train_99": first_step(
            history["step"], history["train_accuracy"], lambda a: a >= 0.99
        ),
        "step_test_99": first_step(history["step"], history["test_accuracy"], lambda a: a >= 0.99),
        "train_loss": float(history["train_loss"][-1]),
        "test_loss": float(history["test_loss"][-1]),
        "ipr_mean": float(np.nanmean(neuron_ipr(weights, TASKS[args.task](args.p).wave_order))),
    }
    cli.write_log(out, history)
    cli.write_run(out, args, dev, time.perf_counter() - began, results)
    if cli.plotting(args):
        from tinygrok.plots import modular_polynomials as plots

        marks = [results["step_train_99"], results["step_test_99"]]
        plots.grokking(
            history,
            weights,
            TASKS[args.task](args.p).wave_order,
            marks,
            f"{args.loss.replace('_', '-')} loss",
            out / "grok_addition.png",
        )
    cli.report(out, results, PAPER, "paper (p = 97, mse, weight decay 5, 100 steps)")


if __name__ == "__main__":
    cli.main(main)
