"""Memorisation and generalisation in one network: modular arithmetic, a share of labels corrupted.

    python examples/corrupted_labels.py                    # no regularisation: Coexistence
    python examples/corrupted_labels.py --regularizer weight_decay    # grok, then unlearn
    python examples/corrupted_labels.py --regularizer dropout
    python examples/corrupted_labels.py --regularizer batchnorm
    python examples/corrupted_labels.py --quick

A second network, trained on random labels alone (corruption 1), is trained beside it as a control
of the frequency filter. Paper: Doshi, Das, He, Gromov, To grok or not to grok, arXiv 2310.13061
(Figures 1, 4, 5, 6, 17)."""

from tinygrok import cli  # first: it sets up BLAS threads before NumPy loads

import _memory as memory  # isort: skip

import functools  # isort: skip

import _figures_corrupted_labels as plots
import numpy as np

from tinygrok.engine.rng import generator
from tinygrok.ops.activation import activation_help
from tinygrok.ops.loss import LOSSES
from tinygrok.probes import neurons
from tinygrok.probes.fourier import ipr, mean_known, neuron_ipr, neuron_rows
from tinygrok.probes.phases import phase_history
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
NOT_OF_THE_PAPER = {"seed", "seeds", "log_every", "dtype"}  # flags that leave a figure what it is
SHARES = np.linspace(0, 0.95, 39)
KEEP = 5  # frequencies of the filtration curves


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
    add("--activation", default="square", help=activation_help())
    add("--loss", default="mse", choices=list(LOSSES), help="the paper uses mse")
    add("--lr", type=cli.positive(), default=0.01, help="learning rate of AdamW")
    add("--batch-size", type=count, help="minibatch size (default: full batch)")
    add("--steps", type=count, help="optimiser steps (default: as the paper's figure)")
    add("--seeds", type=cli.integer(1, 1000), default=1, help="networks: --seed, --seed + 1, ...")
    add("--log-every", type=count, default=10, help="steps between measurements")
    cli.add_checkpoints(p, 30.0)
    chosen = cli.chosen(p, argv).regularizer
    p.set_defaults(**REGULARIZERS[chosen])
    args = cli.parse(p, argv, QUICK | {"steps": QUICK_STEPS[chosen]})
    if args.strength is not None and args.regularizer in ("none", "batchnorm"):
        raise cli.InputError(f"--strength means nothing with --regularizer {args.regularizer}")
    return args


def points(args):
    """The networks, one a seed, and a control trained on random labels alone."""
    point = {"alpha": args.train_frac, "xi": args.corruption, "seed": args.seed}
    for flag in ("rule", "lr", "p", "width", "task", "activation", "loss", "steps", "batch_size"):
        point[flag] = getattr(args, flag)
    point["batchnorm"] = args.regularizer == "batchnorm"
    if args.regularizer in ("weight_decay", "dropout"):
        point[args.regularizer] = args.strength
    control = point | {"xi": 1.0, "rule": "uniform"}
    return [*(point | {"seed": args.seed + s} for s in range(args.seeds)), control]


def record(run, order):
    """Beside losses and accuracies: IPR and norm of every matrix, the gradient share of corrupted
    labels, the test accuracy that one frequency a neuron gives, and which examples are answered as
    given."""
    row = {"gradient_share": ensembles.gradient_shares(run)}
    weights = [run.params.to_host(e) for e in range(run.params.members)]
    for i, name in enumerate(("U1", "U2", "W")):
        iprs = [mean_known(ipr(neuron_rows(w, order)[i])) for w in weights]
        norms = [np.linalg.norm(neuron_rows(w)[i]) for w in weights]
        row[f"ipr_{name}"] = np.array(iprs)
        row[f"norm_{name}"] = np.array(norms)
    kept = [neurons.filtered(w, 1, order)[0] for w in weights]
    accuracies = [ensembles.part_accuracy(run, e, G, "test") for e, G in enumerate(kept)]
    row["filtered_test"] = np.array(accuracies)
    row["as_given"] = run.evaluation.predicted == run.evaluation.labels["given"]
    return row


def filtration(run, initial, order):
    """{network: {part: accuracy for 1 .. KEEP frequencies}}: the trained network and the two
    controls."""
    last = run.params.members - 1
    networks = {
        "trained": (0, run.params.to_host(0), None),
        "initial weights": (0, initial, run.model.init_buffers()),
        "random labels": (last, run.params.to_host(last), None),
    }
    result = {}
    for name, (e, weights, buffers) in networks.items():
        accuracy = functools.partial(ensembles.part_accuracy, run, e, buffers=buffers)
        result[name] = neurons.filtration(weights, accuracy, KEEP, order)
    return result


class Anatomy:
    """What is measured after the training: of the first network, and pruning of every one."""

    def __init__(self, run, args, order):
        # A finished run that was resumed has measured nothing yet.
        run.evaluation(run.objective, run.table)
        self.run = run
        self.args = args
        self.order = order
        self.history = ensembles.member_history(run.history, 0)
        self.as_given = self.history.pop("as_given")
        self.splits = ensembles.member_splits(run, 0)
        self.weights = run.params.to_host(0)
        self.hidden = ensembles.hidden_units(run, 0, self.weights)
        initial = run.model.init(generator(args.seed, "init"))
        final = neuron_ipr(self.weights, order)
        self.ipr = {"initial": neuron_ipr(initial, order), "final": final}
        self.filtered = filtration(run, initial, order)
        self.pruned = {}
        for e in range(args.seeds):
            self.prune(e)

    def prune(self, e):
        """Fill in {order of removal: {split: (seeds, n) accuracies at SHARES}} for one seed."""
        weights = self.run.params.to_host(e)
        splits = ensembles.member_splits(self.run, e)
        a = ensembles.hidden_units(self.run, e, weights)
        seed = self.args.seed + e
        for name, removal in neurons.removals(weights, a, splits["test"], seed, self.order).items():
            curves = neurons.pruning_curves(a, weights["W"], removal, splits, SHARES)
            table = self.pruned.setdefault(name, {})
            for split, curve in curves.items():
                table[split] = np.vstack([*table.get(split, []), curve])

    def score(self, kind):
        return neurons.scores(self.weights, kind, order=self.order)

    def results(self):
        by_ipr = np.argsort(self.score("ipr"), kind="stable")
        units = self.hidden, self.weights["W"]
        needed = neurons.neurons_needed(*units, by_ipr, *self.splits["test"])
        results = self.outcome(0)
        results["ipr_mean"] = mean_known(self.ipr["final"])
        results["neurons_needed_for_99_test"] = needed
        if self.args.seeds > 1:
            results |= self.by_seed()
        cuts = {"low_half": ("IPR, lowest first", 0.5), "high_30": ("IPR, highest first", 0.3)}
        for name, (removal, share) in cuts.items():
            at = np.abs(SHARES - share).argmin()
            for split in ("corrupted", "test"):
                results[f"pruned_{name}_{split}"] = float(self.pruned[removal][split][0, at])
        for name, parts in self.filtered.items():
            for part, accuracies in parts.items():
                key = f"filter_{part}_{name}".replace(" ", "_")
                results[key] = float(accuracies[0])
        if self.args.regularizer == "batchnorm":
            ipr_and_gain = self.ipr["final"], self.score("gain")
            results["rank_correlation_ipr_gamma"] = neurons.rank_correlation(*ipr_and_gain)
        return results

    def outcome(self, e):
        history = ensembles.member_history(self.run.history, e)
        return ensembles.outcome(history, points(self.args)[e])

    def by_seed(self):
        """The main results, a list over the seeds each."""
        keys = ["train_accuracy", "corrupted_accuracy", "test_accuracy"]
        keys += ["phase", "step_grok", "step_unlearn"]
        outcomes = [self.outcome(e) for e in range(self.args.seeds)]
        return {f"{key}_by_seed": [outcome[key] for outcome in outcomes] for key in keys}

    def figures(self, out):
        args = self.args
        phases = phase_history(self.history, args.corruption, args.p)
        plots.training(self.history, phases, out / "training.png")
        gain = None
        if args.regularizer == "batchnorm":
            gain = self.ipr["final"], self.score("gain"), self.score("readout")
        plots.neurons(self.ipr, self.pruned, SHARES, self.filtered, gain, out / "neurons.png")
        wrong, given = self.splits["corrupted"]
        units = self.hidden[wrong], self.weights["W"]
        margins = neurons.contributions(*units, given[wrong], self.ipr["final"])
        predicted = self.run.evaluation.predicted[0]
        flat = (predicted, given, self.splits["test"][1], self.splits["train"][0])
        tables = [x.reshape(args.p, args.p) for x in flat]
        plots.examples(*tables, margins, out / "examples.png")
        steps = self.history["step"]
        times = neurons.memory_times(steps, self.as_given[:, wrong])
        plots.releases(steps, *times, out / "releases.png")


def paper_of(args):
    """{result: the paper's number} where the settings are those of its figure."""
    flags = ["--regularizer", args.regularizer]
    if args.strength is not None:
        flags += ["--strength", str(args.strength)]
    wanted = cli.config(arguments(flags))
    here = cli.config(args)
    if any(here[name] != wanted[name] for name in set(wanted) - NOT_OF_THE_PAPER):
        return {}
    numbers = PAPER.get((args.regularizer, args.strength), ())
    return dict(zip(("train_accuracy", "test_accuracy", "phase"), numbers, strict=False))


def progress(row):
    return "  ".join(f"{s} {row[f'{s}_accuracy'][0]:.3f}" for s in ("train", "corrupted", "test"))


def main(argv=None):
    args = arguments(argv)
    experiment = cli.Experiment(args)
    order = TASKS[args.task](args.p).wave_order  # refuses a task whose waves are not known
    memory.require(experiment.dev, **memory.labels(experiment.dev, args))
    run = ensembles.build(experiment.dev, points(args), lambda run: record(run, order))
    experiment.open(run)
    corrupted = run.evaluation.splits["corrupted"][0][0].sum()
    sizes = f"{len(run.data[0][1])} training pairs, {corrupted} of them corrupted"
    print(f"{args.task}, p = {args.p}: {sizes}; network {run.model!r}")
    code = experiment.train(run, args.log_every, progress)
    if code is not None:
        return code
    found = Anatomy(run, args, order)
    experiment.finish(found.results(), found.history, found.figures, paper_of(args), "paper")
    return None


if __name__ == "__main__":
    cli.main(main)
