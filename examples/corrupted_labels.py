"""Memorisation and generalisation in one network: modular arithmetic, a share of labels corrupted.

    python examples/corrupted_labels.py                    # no regularisation: Coexistence
    python examples/corrupted_labels.py --regularizer weight_decay    # grok, then unlearn
    python examples/corrupted_labels.py --regularizer dropout
    python examples/corrupted_labels.py --regularizer batchnorm
    python examples/corrupted_labels.py --quick
    python examples/corrupted_labels.py --quick --regularizer weight_decay --strength 20    # forget
    python examples/corrupted_labels.py --quick --seeds 9    # medians and quartiles of 9 networks
    python examples/corrupted_labels.py --net transformer --regularizer weight_decay    # or mlp3

A second network, trained on random labels alone (corruption 1), is trained beside it as a control
of the frequency filter. Paper: Doshi, Das, He, Gromov, To grok or not to grok, arXiv 2310.13061
(Figures 1, 4, 5, 6, 17; of the other networks 7)."""

from tinygrok import cli  # first: it sets up BLAS threads before NumPy loads

import _corrupted_nets  # isort: skip
import _memory as memory  # isort: skip
import _nets  # isort: skip
import _paper  # isort: skip
import _seeds  # isort: skip
from _corrupted_anatomy import Anatomy, record  # isort: skip
from tinygrok.ops.activation import activation_help
from tinygrok.ops.loss import LOSSES
from tinygrok.tasks import TASKS
from tinygrok.tasks.corruption import RULES
from tinygrok.training import ensembles

# regulariser -> settings of the paper's figures that the flags may change
REGULARIZERS = {
    "none": {"steps": 1000},
    "weight_decay": {"steps": 500, "strength": 15.0},
    "dropout": {"steps": 1000, "strength": 0.6},
    "batchnorm": {"steps": 2000, "batch_size": 64, "lr": 0.005},
}
REGULARIZERS["batchnorm"] |= {"train_frac": 0.65, "corruption": 0.2}
QUICK = {"p": 59, "width": 200, "corruption": 0.2, "train_frac": 0.5}
QUICK_STEPS = {"none": 600, "weight_decay": 600, "dropout": 600, "batchnorm": 1500}
# (regulariser, strength) -> train and test accuracy of the authors' published runs at p = 97, and
# the phase
PAPER = {
    ("none", None): ("0.978", "0.983", "Coexistence"),
    ("weight_decay", 5.0): ("0.786", "1.000", "Partial Inversion"),
    ("weight_decay", 15.0): ("0.654", "1.000", "Full Inversion"),
    ("batchnorm", None): ("0.804", "1.000", "Full Inversion"),
}
# (network, regulariser, strength) -> the phase in the paper's text
PAPER_PHASES = {
    ("transformer", "weight_decay", 10.0): "Coexistence",
    ("transformer", "weight_decay", 50.0): "Full Inversion",
}
# What goes with another network than the two-layer one: the paper's settings, and quick ones.
USUAL = {
    "mlp2": {},
    "mlp3": {"activation": "relu", "lr": 0.001, "steps": 5000, "log_every": 50},
    "transformer": {"activation": None, "width": 128, "lr": 0.001, "steps": 3000, "log_every": 50},
}
for _settings in (USUAL["mlp3"], USUAL["transformer"]):
    _settings |= {"train_frac": 0.8, "corruption": 0.2}
STRENGTHS = {("transformer", "weight_decay"): 50.0, ("mlp3", "dropout"): 0.05}
STRENGTHS["mlp3", "weight_decay"] = 5.0  # ours: the text says no number
QUICK_NETS = {
    "mlp2": {},
    "mlp3": {"train_frac": 0.8, "steps": 600, "log_every": 20},
    "transformer": {"width": 64, "train_frac": 0.8, "lr": 0.01, "steps": 500, "log_every": 20},
}
# A decay that inverts in so few steps, or a rate at which the usual one does.
QUICK_DECAYS = {"mlp2": {}, "mlp3": {"lr": 0.003}, "transformer": {"strength": 2.0}}


def arguments(argv=None):
    p = cli.parser("corrupted_labels", __doc__)
    add = p.add_argument
    count = cli.integer()
    add("--regularizer", default="none", choices=list(REGULARIZERS), help="what curbs memorisation")
    add("--strength", type=cli.real(), help="weight decay, or dropout rate (default: 15, 0.6)")
    add("--corruption", type=cli.real(0, 1), default=0.35, help="share of the labels corrupted")
    add("--rule", default="uniform", choices=RULES, help="how labels are corrupted")
    add("--task", default="addition", choices=sorted(TASKS), help="function of (n1, n2) mod p")
    add("--p", type=cli.integer(2, 1000), default=97, help="modulus")
    add("--width", type=cli.integer(1, 10**6), default=500, help="hidden neurons")
    add("--train-frac", type=cli.fraction(), default=0.5, help="share of the table to train on")
    activation = add("--activation", default="square", help=activation_help())
    add("--loss", default="mse", choices=list(LOSSES), help="the paper uses mse")
    add("--lr", type=cli.positive(), default=0.01, help="learning rate of AdamW")
    add("--batch-size", type=count, help="minibatch size (default: full batch)")
    add("--steps", type=count, help="optimiser steps (default: as the paper's figure)")
    _seeds.add_seeds(add)
    add("--log-every", type=count, default=10, help="steps between measurements")
    cli.add_checkpoints(p, 30.0)
    chosen = cli.chosen(p, argv).regularizer
    p.set_defaults(**REGULARIZERS[chosen])
    net = _nets.add_flag(p, argv, USUAL, activation)
    if (net, chosen) in STRENGTHS:
        p.set_defaults(strength=STRENGTHS[net, chosen])
    quick = QUICK | {"steps": QUICK_STEPS[chosen]} | QUICK_NETS[net]
    if chosen == "weight_decay":
        quick |= QUICK_DECAYS[net]
    args = cli.parse(p, argv, quick)
    _nets.check(net, args.activation, chosen == "dropout", chosen == "batchnorm")
    if args.strength is not None and args.regularizer in ("none", "batchnorm"):
        raise cli.InputError(f"--strength means nothing with --regularizer {args.regularizer}")
    return args


def points(args):
    """The networks, one a seed, and, of the two-layer network, a control trained on random labels
    alone."""
    point = {"alpha": args.train_frac, "xi": args.corruption, "seed": args.seed}
    for flag in ("rule", "lr", "p", "width", "task", "activation", "loss", "steps", "batch_size"):
        point[flag] = getattr(args, flag)
    point["batchnorm"] = args.regularizer == "batchnorm"
    if args.regularizer in ("weight_decay", "dropout"):
        point[args.regularizer] = args.strength
    networks = [point | {"seed": seed} for seed in _seeds.seeds_of(args)]
    control = point | {"xi": 1.0, "rule": "uniform"}
    return [*networks, control] if args.net == "mlp2" else networks


def paper_of(args):
    """{result: the paper's number} where the settings are those of its figure."""
    flags = ["--net", args.net, "--regularizer", args.regularizer]
    if args.strength is not None:
        flags += ["--strength", str(args.strength)]
    if not _paper.in_its_setting(args, arguments(flags)):
        return {}
    if args.net != "mlp2":
        known = PAPER_PHASES.get((args.net, args.regularizer, args.strength))
        return {} if known is None else {"phase": known}
    numbers = PAPER.get((args.regularizer, args.strength), ())
    return dict(zip(("train_accuracy", "test_accuracy", "phase"), numbers, strict=False))


def progress(row):
    """Of the first network."""
    return "  ".join(f"{s} {row[f'{s}_accuracy'][0]:.3f}" for s in ("train", "corrupted", "test"))


def build(args, dev, order):
    """The networks, and what is measured of them while they train."""
    net = None  # the two-layer one of the points
    if args.net == "mlp2":
        memory.require(dev, **memory.labels(dev, args))
    else:
        memory.require(dev, **_nets.memory_of(dev, args.net, args.p, args.width, args.seeds))
        net = _nets.build(args.net, args.p, args.width, args.activation)
    return ensembles.build(dev, points(args), lambda run: record(run, order), net)


def main(argv=None):
    args = arguments(argv)
    experiment = cli.Experiment(args)
    order = TASKS[args.task](args.p).wave_order  # refuses a task whose waves are not known
    run = build(args, experiment.dev, order)
    experiment.open(run)
    corrupted = run.evaluation.splits["corrupted"][0][0].sum()
    sizes = f"{len(run.data[0][1])} training pairs, {corrupted} of them corrupted"
    print(f"{args.task}, p = {args.p}: {sizes}; network {run.model!r}")
    code = experiment.train(run, args.log_every, progress)
    if code is not None:
        return code
    measured = Anatomy if args.net == "mlp2" else _corrupted_nets.Rows
    found = measured(run, args, points(args), order)
    results, shown = found.results()
    paper = paper_of(args)
    experiment.finish(results, found.history, found.figures, paper, "paper", shown)
    return None


if __name__ == "__main__":
    cli.main(main)
