"""Grokking modular addition: a two-layer quadratic network learns it from half of the table.

    python examples/grok_addition.py                # p = 97, width 500
    python examples/grok_addition.py --quick        # p = 59, width 200, decay 2
    python examples/grok_addition.py --loss mse --weight-decay 5 --steps 100    # as in the papers

The network f = W phi(U1[n1] + U2[n2]), phi(x) = x^2, first memorises its training pairs, and only
later answers the pairs it never saw. Its neurons end as cosines of one frequency each: look at the
figure. Papers: Gromov, arXiv 2301.02679; Doshi et al., arXiv 2310.13061 (Figure 2) and 2406.03495.
"""

from tinygrok import cli  # first: it sets up BLAS threads before NumPy loads

import numpy as np  # isort: skip

from tinygrok.engine.optim import AdamW
from tinygrok.engine.params import Arena
from tinygrok.engine.rng import generator
from tinygrok.models.mlp import TwoLayerNet
from tinygrok.ops.loss import LOSSES
from tinygrok.probes.fourier import neuron_ipr
from tinygrok.probes.phases import first_step
from tinygrok.tasks import TASKS
from tinygrok.training.tables import Evaluation, Training

QUICK = {"p": 59, "width": 200, "weight_decay": 2.0}
PAPER = {
    "train_accuracy": "1.000",
    "test_accuracy": "1.000",
    "train_loss": "0.0008",
    "test_loss": "0.0010",
    "ipr_mean": "0.85",
}
ACTIVATIONS = "square, power<k>, relu, leaky_relu, gelu, gelu_tanh, tanh, erf"


def arguments(argv=None):
    p = cli.parser("grok_addition", __doc__.splitlines()[0])
    add = p.add_argument
    count = cli.integer()
    task_help = "function of (n1, n2) to learn"
    share_help = "share of the table to train on"
    batch_help = "minibatch size (default: full batch)"
    dropout_help = "dropout rate of the pre-activations"
    rate = cli.real(0, 1, open_high=True)
    scale_help = "multiplies the papers' initial weights"
    add("--task", default="addition", choices=sorted(TASKS), help=task_help)
    add("--p", type=cli.integer(2, 1000), default=97, help="modulus, or elements of the group")
    add("--width", type=count, default=500, help="hidden neurons")
    add("--train-frac", type=cli.fraction(), default=0.5, help=share_help)
    add("--activation", default="square", help=ACTIVATIONS)
    add("--loss", default="cross_entropy", choices=list(LOSSES), help="the papers use mse")
    add("--steps", type=count, default=400, help="optimiser steps")
    add("--batch-size", type=count, default=None, help=batch_help)
    add("--lr", type=cli.positive(), default=0.01, help="learning rate of AdamW")
    add("--weight-decay", type=cli.real(), default=1.0, help="decoupled weight decay (papers: 5)")
    add("--dropout", type=rate, default=0.0, help=dropout_help)
    add("--init-scale", type=cli.positive(), default=1.0, help=scale_help)
    add("--log-every", type=count, default=5, help="steps between measurements")
    cli.add_checkpoints(p, 30.0)
    return cli.parse(p, argv, QUICK)


def build(args, dev):
    """Task, network, optimiser and data of a run: every random draw comes from a named stream of
    the seed."""
    task = TASKS[args.task](args.p)
    train, test = task.split(args.train_frac, generator(args.seed, "split"))
    net = TwoLayerNet(args.p, args.width, activation=args.activation)
    weights = net.init(generator(args.seed, "init"))
    params = Arena(dev, net.shapes)
    params.load({name: args.init_scale * w for name, w in weights.items()})
    grads = Arena(dev, net.shapes)
    decay = args.weight_decay
    optimizer = AdamW(dev, params, grads, lr=args.lr, betas=(0.9, 0.98), weight_decay=decay)
    inputs = task.inputs(train)
    data = [(inputs, task.labels(inputs))]
    evaluation = Evaluation.of_task(task, train=train, test=test)
    return Training(
        dev,
        net,
        optimizer,
        data,
        evaluation,
        args.seed,
        args.loss,
        args.batch_size,
        args.dropout,
    )


def measured(history, weights, task):
    """What is reported of a finished run."""

    def step_of_99(split):
        return first_step(history["step"], history[f"{split}_accuracy"], lambda a: a >= 0.99)

    results = {
        "train_accuracy": float(history["train_accuracy"][-1]),
        "test_accuracy": float(history["test_accuracy"][-1]),
        "step_train_99": step_of_99("train"),
        "step_test_99": step_of_99("test"),
        "train_loss": float(history["train_loss"][-1]),
        "test_loss": float(history["test_loss"][-1]),
        "ipr_mean": None,
    }
    if task.circle is not None:  # the neurons of a group are no known waves
        results["ipr_mean"] = float(np.nanmean(neuron_ipr(weights, task.wave_order)))
    return results


def progress(row):
    parts = [
        f"{split} loss {row[f'{split}_loss']:.5f} acc {row[f'{split}_accuracy']:.4f}"
        for split in ("train", "test")
    ]
    return "  ".join(parts)


def main(argv=None):
    args = arguments(argv)
    experiment = cli.Experiment(args)
    run = build(args, experiment.dev)
    experiment.open(run)
    train, test = (mask.sum() for mask, _ in run.evaluation.splits.values())
    pairs = f"{train} training pairs, {test} held out"
    print(f"{args.task}, p = {args.p}: {pairs}; network {run.model!r}")
    code = experiment.train(run, args.log_every, progress)
    if code is not None:
        return code

    task = TASKS[args.task](args.p)
    order = None if task.circle is None else task.wave_order
    weights = run.params.to_host()
    results = measured(run.history, weights, task)

    def figures(out):
        from tinygrok.plots import modular_polynomials as plots

        marks = [results["step_train_99"], results["step_test_99"]]
        title = f"{args.loss.replace('_', '-')} loss"
        plots.grokking(run.history, weights, order, marks, title, out / "grok_addition.png")

    title = "paper (p = 97, mse, weight decay 5, 100 steps)"
    experiment.finish(results, run.history, figures, PAPER, title)
    return None


if __name__ == "__main__":
    cli.main(main)
