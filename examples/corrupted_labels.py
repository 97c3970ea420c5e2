"""Memorisation and generalisation in one network: modular arithmetic with a share of the labels
corrupted.

    python examples/corrupted_labels.py                                  # no regularisation: Coexistence
    python examples/corrupted_labels.py --regularizer weight_decay       # grok, then unlearn: Full Inversion
    python examples/corrupted_labels.py --regularizer dropout
    python examples/corrupted_labels.py --regularizer batchnorm
    python examples/corrupted_labels.py --quick

A second network, trained on random labels alone (corruption 1), is trained beside it as a control
of the frequency filter. Paper: Doshi, Das, He, Gromov, To grok or not to grok, arXiv 2310.13061
(Figures 1, 4, 5, 6, 17)."""

import time

from tinygrok import cli  # first: it sets up BLAS threads before NumPy loads

import numpy as np  # isort: skip

from tinygrok.engine.rng import generator
from tinygrok.probes import neurons
from tinygrok.probes.fourier import ipr, neuron_ipr, neuron_rows
from tinygrok.probes.phases import phase_history
from tinygrok.tasks import TASKS
from tinygrok.tasks.corruption import RULES
from tinygrok.training.ensembles import (
    build,
    gradient_shares,
    hidden_units,
    member_history,
    outcome,
)

# regulariser -> settings of the paper's figures that the flags may change
REGULARIZERS = {
    "none": {"steps": 1000},
    "weight_decay": {"steps": 500, "strength": 15.0},
    "dropout": {"steps": 1000, "strength": 0.6},
    "batchnorm": {
        "steps": 2000,
        "batch_size": 64,
        "lr": 0.005,
        "train_frac": 0.65,
        "corruption": 0.2,
    },
}
QUICK = {"p": 59, "width": 200, "corruption": 0.2, "train_frac": 0.5}
QUICK_STEPS = {"none": 600, "weight_decay": 600, "dropout": 600, "batchnorm": 1500}
PAPER = {  # (regulariser, strength) -> train and test accuracy of the authors' published runs at p = 97, and the phase
    ("none", None): ("0.978", "0.983", "Coexistence"),
    ("weight_decay", 5.0): ("0.786", "1.000", "Partial Inversion"),
    ("weight_decay", 15.0): ("0.654", "1.000", "Full Inversion"),
    ("batchnorm", None): ("0.804", "1.000", "Full Inversion"),
}
SHARES = np.linspace(0, 0.95, 39)
KEEP = 5  # frequencies of the filtration curves
# The order of a task whose neurons are no known waves (a group): IPR and filter are nan.
UNKNOWN = "unknown"


def arguments(argv=None):
    p = cli.parser("corrupted_labels", __doc__.splitlines()[0])
    p.add_argument(
        "--regularizer",
        default="none",
        choices=sorted(REGULARIZERS),
        help="what holds memorisation back",
    )
    p.add_argument(
        "--strength",
        type=cli.real(),
        default=None,
        help="weight decay, or dropout rate (default: 15, 0.6)",
    )
    p.add_argument(
        "--corruption",
        type=cli.real(0, 1),
        default=0.35,
        help="fraction of the training labels corrupted",
    )
    p.add_argument(
        "--rule",
        default="uniform",
        choices=RULES,
        help="how labels are corrupted (uniform: the paper's rule)",
    )
    p.add_argument("--task", default="addition", choices=sorted(TASKS), help="function of (n1, n2)")
    p.add_argument(
        "--p", type=cli.integer(2, 1000), default=97, help="modulus, or elements of the group"
    )
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
    p.add_argument("--loss", default="mse", choices=["mse", "cross_entropy"], help="loss")
    p.add_argument(
        "--lr", type=cli.real(0, None, True), default=0.01, help="learning rate of AdamW"
    )
    p.add_argument(
        "--batch-size",
        type=cli.integer(),
        default=None,
        help="minibatch size (default: full batch)",
    )
    p.add_argument(
        "--steps",
        type=cli.integer(),
        default=None,
        help="optimiser steps (default: as the paper's figure)",
    )
    p.add_argument(
        "--seeds",
        type=cli.integer(),
        default=1,
        help="networks side by side, of seeds --seed, --seed + 1, ...",
    )
    p.add_argument("--log-every", type=cli.integer(), default=10, help="steps between measurements")
    p.add_argument(
        "--save-seconds", type=cli.real(), default=30.0, help="seconds between checkpoints"
    )
    p.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    chosen = p.parse_known_args(argv)[0]
    p.set_defaults(**REGULARIZERS[chosen.regularizer])
    args = cli.parse(p, argv, QUICK | {"steps": QUICK_STEPS[chosen.regularizer]})
    if args.strength is not None and args.regularizer in ("none", "batchnorm"):
        raise cli.InputError(f"--strength means nothing with --regularizer {args.regularizer}")
    return args


def points(args):
    """The networks, one a seed, and a control trained on random labels alone."""
    point = {
        "alpha": args.train_frac,
        "xi": args.corruption,
        "rule": args.rule,
        "lr": args.lr,
        "seed": args.seed,
        "p": args.p,
        "width": args.width,
        "task": args.task,
        "activation": args.activation,
        "loss": args.loss,
        "steps": args.steps,
        "batch_size": args.batch_size,
        "batchnorm": args.regularizer == "batchnorm",
    }
    if args.regularizer in ("weight_decay", "dropout"):
        point[args.regularizer] = args.strength
    return [point | {"seed": args.seed + s} for s in range(args.seeds)] + [
        point | {"xi": 1.0, "rule": "uniform"}
    ]


def mean_ipr(values):
    """Mean over the neurons that are not dead; nan when all are."""
    return float(values[~np.isnan(values)].mean()) if not np.isnan(values).all() else np.nan


def record(run, order):
    """Beside losses and accuracies: IPR and norm of every matrix, the gradient share of corrupted
    labels, the test accuracy that one frequency a neuron gives, and which examples are answered as
    given."""
    row = {"gradient_share": gradient_shares(run)}
    weights = [run.params.to_host(e) for e in range(run.params.members)]
    for i, name in enumerate(("U1", "U2", "W")):
        row[f"ipr_{name}"] = np.full(len(weights), np.nan)
        if order is not UNKNOWN:
            row[f"ipr_{name}"][:] = [mean_ipr(ipr(neuron_rows(w, order)[i])) for w in weights]
        row[f"norm_{name}"] = np.array([np.linalg.norm(neuron_rows(w)[i]) for w in weights])
    row["filtered_test"] = np.full(len(weights), np.nan)
    if order is not UNKNOWN:
        row["filtered_test"][:] = [
            filtered_accuracy(run, e, neurons.filtered(w, 1, order)[0], "test")
            for e, w in enumerate(weights)
        ]
    row["as_given"] = run.evaluation.predicted == run.evaluation.labels["given"]
    return row


def filtered_accuracy(run, e, part, split, buffers=None):
    """Accuracy on a split of a network made of one part of its spectrum. With BatchNorm, gain and
    beta of member e and running statistics of the whole network apply to the part too."""
    mask, labels = member_splits(run, e)[split]
    z = hidden_units(run, e, run.params.to_host(e) | part, buffers) @ part["W"]
    return (z.argmax(axis=1) == labels)[mask].mean() if mask.any() else np.nan


def member_splits(run, e):
    """{split: (mask, labels)} of one member."""
    evaluation = run.evaluation
    return {
        k: (m[e], np.broadcast_to(evaluation.labels[which], m.shape)[e])
        for k, (m, which) in evaluation.splits.items()
    }


def pruning(run, e, args, order):
    """{order: {split: accuracies at SHARES}} of one member: by IPR, by chance, and by a rival
    score."""
    weights, splits = run.params.to_host(e), member_splits(run, e)
    a, by = (
        hidden_units(run, e, weights),
        lambda kind: np.argsort(neurons.scores(weights, kind, args.seed + e, order), kind="stable"),
    )
    orders = {}
    if order is not UNKNOWN:
        orders = {"IPR, lowest first": by("ipr"), "IPR, highest first": by("ipr")[::-1]}
    orders["chance"] = by("random")
    if args.regularizer == "batchnorm":
        orders["|gain|, lowest first"] = by("gain")
    else:
        orders["test margin, least first"] = neurons.margin_order(a, weights["W"], *splits["test"])
    return {
        name: neurons.pruning_curves(a, weights["W"], order, splits, SHARES)
        for name, order in orders.items()
    }


def filtration(run, initial, order):
    """{network: {part: accuracy for 1 .. KEEP frequencies}}: the trained network and the two
    controls."""
    last, fresh = run.params.members - 1, run.model.init_buffers()
    networks = {
        "trained": (0, run.params.to_host(0), None),
        "initial weights": (0, initial, fresh),
        "random labels": (last, run.params.to_host(last), None),
    }
    result = {}
    for name, (e, w, buffers) in networks.items():
        if order is UNKNOWN:
            result[name] = dict.fromkeys(("G test", "R corrupted"), np.full(KEEP, np.nan))
            continue
        parts = [neurons.filtered(w, keep, order) for keep in range(1, KEEP + 1)]
        result[name] = {
            "G test": np.array(
                [filtered_accuracy(run, e, kept, "test", buffers) for kept, _ in parts]
            ),
            "R corrupted": np.array(
                [filtered_accuracy(run, e, rest, "corrupted", buffers) for _, rest in parts]
            ),
        }
    return result


def main(argv=None):
    args = arguments(argv)
    dev = cli.device(args)
    task = TASKS[args.task](args.p)
    order = task.wave_order if task.circle is not None else UNKNOWN
    run = build(dev, points(args), lambda run: record(run, order))
    out = cli.start(args, run)
    count = run.evaluation.splits["corrupted"][0][0].sum()
    print(
        f"{args.task}, p = {args.p}: {len(run.data[0][1])} training pairs, {count} of them corrupted; network {run.model!r}"
    )
    began = time.perf_counter()

    def text(row):
        return "  ".join(
            f"{s} {row[f'{s}_accuracy'][0]:.3f}" for s in ("train", "corrupted", "test")
        )

    code = cli.train(args, run, out, args.log_every, text)
    if code is not None:
        return code

    run.evaluation(
        run.objective, run.table
    )  # a finished run that was resumed has measured nothing yet
    history, splits, weights = (
        member_history(run.history, 0),
        member_splits(run, 0),
        run.params.to_host(0),
    )
    initial = run.model.init(generator(args.seed, "init"))
    iprs = dict.fromkeys(("initial", "final"), np.full(args.width, np.nan))
    if order is not UNKNOWN:
        iprs = {"initial": neuron_ipr(initial, order), "final": neuron_ipr(weights, order)}
    a = hidden_units(run, 0, weights)
    by_seed = [pruning(run, e, args, order) for e in range(args.seeds)]
    curves = {
        order: {k: np.stack([c[order][k] for c in by_seed]) for k in splits} for order in by_seed[0]
    }
    filtered = filtration(run, initial, order)
    results = outcome(history, points(args)[0]) | {"ipr_mean": mean_ipr(iprs["final"])}
    if order is not UNKNOWN:
        by_ipr = np.argsort(neurons.scores(weights, "ipr", order=order), kind="stable")
        needed = neurons.neurons_needed(a, weights["W"], by_ipr, *splits["test"])
        results["neurons_needed_for_99_test"] = needed
    if args.seeds > 1:
        each = [outcome(member_history(run.history, e), points(args)[e]) for e in range(args.seeds)]
        keys = (
            "train_accuracy",
            "corrupted_accuracy",
            "test_accuracy",
            "phase",
            "step_grok",
            "step_unlearn",
        )
        results |= {f"{key}_by_seed": [r[key] for r in each] for key in keys}
    for name, by, share in (
        ("low_half", "IPR, lowest first", 0.5),
        ("high_30", "IPR, highest first", 0.3),
    ):
        for split in ("corrupted", "test"):
            if by in curves:
                results[f"pruned_{name}_{split}"] = float(
                    curves[by][split][0, np.abs(SHARES - share).argmin()]
                )
    for name, values in filtered.items():
        results |= {
            f"filter_{part}_{name}".replace(" ", "_"): float(x[0]) for part, x in values.items()
        }
    gain = None
    if args.regularizer == "batchnorm" and order is not UNKNOWN:
        strength = neurons.scores(weights, "gain")
        gain = iprs["final"], strength, neurons.scores(weights, "readout")
        results["rank_correlation_ipr_gamma"] = neurons.rank_correlation(iprs["final"], strength)
    as_given = history.pop("as_given")
    cli.write_log(out, history)
    cli.write_run(out, args, dev, time.perf_counter() - began, results)
    if cli.plotting(args):
        from tinygrok.plots import corrupted_labels as plots

        plots.training(
            history, phase_history(history, args.corruption, args.p), out / "training.png"
        )
        plots.neurons(iprs, curves, SHARES, filtered, gain, out / "neurons.png")
        square = lambda x: x.reshape(args.p, args.p)  # noqa: E731
        wrong, given = splits["corrupted"]
        margins = neurons.contributions(a[wrong], weights["W"], given[wrong], iprs["final"])
        plots.examples(
            square(run.evaluation.predicted[0]),
            square(given),
            square(splits["test"][1]),
            square(splits["train"][0]),
            margins,
            out / "examples.png",
        )
        plots.releases(
            history["step"],
            *neurons.memory_times(history["step"], as_given[:, wrong]),
            out / "releases.png",
        )
    figure = vars(
        arguments(
            [
                "--regularizer",
                args.regularizer,
                *(["--strength", str(args.strength)] if args.strength else []),
            ]
        )
    )
    hidden = (
        "seed",
        "seeds",
        "log_every",
        "out",
        "save_seconds",
        "resume",
        "no_plot",
        "device",
        "dtype",
        "threads",
    )
    same = all(value == figure[name] for name, value in vars(args).items() if name not in hidden)
    paper = PAPER.get((args.regularizer, args.strength), ()) if same else ()
    cli.report(
        out,
        results,
        dict(zip(("train_accuracy", "test_accuracy", "phase"), paper, strict=False)),
        "paper",
    )


if __name__ == "__main__":
    cli.main(main)
