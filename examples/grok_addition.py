"""Grokking modular addition: a two-layer quadratic network learns it from half of the table.

    python examples/grok_addition.py                # p = 97, width 500
    python examples/grok_addition.py --quick        # p = 59, width 200, decay 2
    python examples/grok_addition.py --loss mse --weight-decay 5 --steps 100    # as in the papers
    python examples/grok_addition.py --quick --seeds 25    # medians and quartiles of 25 networks
    python examples/grok_addition.py --net transformer    # one block on two tokens; or mlp3
    python examples/grok_addition.py --terms 4      # n1 + n2 + n3 + n4 mod 11, width 1000

The network f = W phi(U1[n1] + ... + US[nS]), phi(x) = x^S, of S = 2 terms unless there are more,
first memorises its training inputs, and only later answers those it never saw. Its neurons end as
cosines of one frequency each: look at the figure. Papers: Gromov, arXiv 2301.02679; Doshi et al.,
arXiv 2310.13061 (Figure 2) and 2406.03495 (Figure 2: S = 4, here with the flags --width 5000 --loss
mse --weight-decay 5 besides --terms 4).
"""

from tinygrok import cli  # first: it sets up BLAS threads before NumPy loads

import _figures_nets  # isort: skip
import _figures_seeds  # isort: skip
import _film as film  # isort: skip
import _memory as memory  # isort: skip
import _nets  # isort: skip
import _paper  # isort: skip
import _seeds  # isort: skip
import numpy as np  # isort: skip

from tinygrok.engine.rng import generator
from tinygrok.models.mlp import TwoLayerNet, power
from tinygrok.ops.activation import activation_help
from tinygrok.ops.loss import LOSSES
from tinygrok.probes.phases import step_of_99
from tinygrok.tasks import TASKS
from tinygrok.training.tables import Training, mean_ipr

# Defaults by the number of terms, then by network.
OF_TERMS = {
    2: {},
    3: {"p": 23, "lr": 0.005, "train_frac": 0.3},
    4: {"p": 11, "lr": 0.005, "width": 1000},
}
QUICK_TERMS = {
    2: {},
    3: {"width": 200, "weight_decay": 2.0},
    4: {"width": 500, "weight_decay": 2.0},
}
MANY_TERMS = ("addition", "multiplication")  # tasks that have more than two where asked
USUAL = {
    "mlp2": {},
    "mlp3": {"activation": "relu", "weight_decay": 3.0, "steps": 600, "log_every": 20},
    "transformer": {"width": 128, "weight_decay": 0.5, "steps": 1000, "log_every": 20},
}
USUAL["transformer"]["activation"] = None
QUICK = {
    "mlp2": {"p": 59, "width": 200, "weight_decay": 2.0},
    "mlp3": {"p": 59, "width": 200, "steps": 400},
    "transformer": {"p": 59, "width": 64, "weight_decay": 1.0, "steps": 600},
}
PAPER_FLAGS = {
    "mlp2": "--loss mse --weight-decay 5 --steps 100",
    "transformer": "--net transformer",
}
PAPER = {  # arXiv 2310.13061: Figure 2, and what the authors' Transformer notebook printed
    "mlp2": {"train_loss": "0.0008", "test_loss": "0.0010", "ipr_mean": "0.85"},
    "transformer": {"train_loss": "0.000018", "test_loss": "0.00099"},
}
for _numbers in PAPER.values():
    _numbers |= {"train_accuracy": "1.000", "test_accuracy": "1.000"}


def arguments(argv=None):
    p = cli.parser("grok_addition", __doc__)
    add = p.add_argument
    count = cli.integer()
    rate = cli.real(0, 1, open_high=True)
    tasks = sorted(TASKS)
    add("--task", default="addition", choices=tasks, help="function of (n1, n2) to learn")
    terms = "numbers that are added or multiplied; more than 2 have other defaults (p, width, ...)"
    add("--terms", type=cli.integer(2, 4), default=2, help=terms)
    add("--p", type=cli.integer(2, 1000), default=97, help="modulus, or elements of the group")
    add("--width", type=cli.integer(1, 10**6), default=500, help="hidden neurons")
    add("--train-frac", type=cli.fraction(), default=0.5, help="share of the table to train on")
    activation = add("--activation", default="square", help=activation_help())
    add("--loss", default="cross_entropy", choices=list(LOSSES), help="the papers use mse")
    add("--steps", type=count, default=400, help="optimiser steps")
    add("--batch-size", type=count, help="minibatch size (default: full batch)")
    add("--lr", type=cli.positive(), default=0.01, help="learning rate of AdamW")
    add("--weight-decay", type=cli.real(), default=1.0, help="decoupled weight decay (papers: 5)")
    add("--dropout", type=rate, default=0.0, help="dropout rate of the pre-activations")
    add("--init-scale", type=cli.positive(), default=1.0, help="multiplies the initial weights")
    _seeds.add_seeds(add)
    add("--log-every", type=count, default=5, help="steps between measurements")
    film.add_flag(p)
    cli.add_checkpoints(p, 30.0)
    terms = cli.chosen(p, argv).terms
    p.set_defaults(activation=power(terms), **OF_TERMS[terms])
    net = _nets.add_flag(p, argv, USUAL, activation)
    args = cli.parse(p, argv, QUICK_TERMS[terms] or QUICK[net])
    _nets.check(net, args.activation, args.dropout)
    if net != "mlp2" and (terms > 2 or args.animate):
        flag = "--terms above 2" if terms > 2 else "--animate"
        raise cli.InputError(f"{flag}: not with --net {net}")
    if args.animate and args.seeds > 1:
        raise cli.InputError(f"--animate shows one network, not --seeds {args.seeds}")
    film.check(args)
    return args


def task_of(args):
    make = TASKS[args.task]
    if args.terms == 2:
        return make(args.p)
    if args.task not in MANY_TERMS:
        others = " and ".join(MANY_TERMS)
        raise cli.InputError(f"--terms {args.terms}: only {others} can have more than two terms")
    return make(args.p, terms=args.terms)


def build(args, dev):
    """The run: of one network, or of one for each of several seeds."""
    sizes = args.net, args.p, args.width, args.seeds, args.terms
    memory.require(dev, **_nets.memory_of(dev, *sizes))
    if args.seeds == 1:
        return network(args, dev, args.seed)
    run = _seeds.together(lambda seed: network(args, dev, seed), _seeds.seeds_of(args))
    run.extra = _seeds.mean_iprs if args.net == "mlp2" else _nets.record
    return run


def network(args, dev, seed):
    """The run of one network: every random draw comes from a named stream of the seed."""
    task = task_of(args)
    net = _nets.build(args.net, args.p, args.width, args.activation, args.terms)
    weights = net.init(generator(seed, "init"))
    run = Training.on_task(
        net,
        task,
        args.train_frac,
        seed,
        lr=args.lr,
        weight_decay=args.weight_decay,
        loss=args.loss,
        batch_size=args.batch_size,
        dropout=args.dropout,
        weights={name: args.init_scale * w for name, w in weights.items()},
        device=dev,
        betas=(0.9, 0.98),
    )
    run.extra = mean_ipr if args.net == "mlp2" else _nets.record
    return run


def measured(history):
    """What is reported of a finished run."""
    return {
        "train_accuracy": float(history["train_accuracy"][-1]),
        "test_accuracy": float(history["test_accuracy"][-1]),
        "step_train_99": step_of_99(history, "train"),
        "step_test_99": step_of_99(history, "test"),
        "train_loss": float(history["train_loss"][-1]),
        "test_loss": float(history["test_loss"][-1]),
        # The neurons of a group are no known waves.
        "ipr_mean": history["ipr_mean"][-1] if "ipr_mean" in history else None,
    }


def as_in_the_paper(args):
    """Whether the paper's numbers may stand beside this run."""
    flags = PAPER_FLAGS.get(args.net)
    return flags is not None and _paper.in_its_setting(args, arguments(flags.split()))


def progress(row):
    """Of several networks: the medians."""
    parts = []
    for split in ("train", "test"):
        loss = np.median(row[f"{split}_loss"])
        accuracy = np.median(row[f"{split}_accuracy"])
        parts.append(f"{split} loss {loss:.5f} acc {accuracy:.4f}")
    return "  ".join(parts)


def draw(run, path):
    if run.params.members is not None:
        _figures_seeds.grokking(run, path)
    elif type(run.model) is TwoLayerNet:
        run.figure(path)
    else:
        _figures_nets.grokking(run, path)


def main(argv=None):
    args = arguments(argv)
    experiment = cli.Experiment(args)
    run = build(args, experiment.dev)
    film.check_waves(args, run)
    experiment.open(run)
    train = len(run.data[0][1])
    sizes = f"{train} training inputs, {run.evaluation.inputs.shape[1] - train} held out"
    seeds = f"{args.seeds} seeds; " if args.seeds > 1 else ""
    print(f"{args.task}, p = {args.p}: {sizes}; {seeds}network {run.model!r}")
    code = experiment.train(run, args.log_every, progress)
    if code is not None:
        return code

    def figures(out):
        draw(run, out / "grok_addition.png")
        if args.animate:
            film.write(run, out / cli.WEIGHTS, out / "grok_addition.gif")

    if args.seeds == 1:
        results = shown = measured(run.history) | _nets.results(run)
    else:
        results = _seeds.summary(map(measured, _seeds.histories(run)))
        shown = _seeds.shown(results, args.steps)
    paper = PAPER[args.net] if as_in_the_paper(args) else {}
    experiment.finish(results, _nets.columns(run.history), figures, paper, "paper", shown)
    if not paper and args.net in PAPER and args.terms == 2:
        print(f"beside the paper's numbers, in its setting: {PAPER_FLAGS[args.net]}")
    return None


if __name__ == "__main__":
    cli.main(main)
