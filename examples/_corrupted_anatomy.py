"""What corrupted_labels.py measures of its networks, while they train and afterwards."""

import functools
from collections import Counter

import _corrupted_orders as orders
import _figures_corrupted_labels as plots
import _nets
import _seeds
import numpy as np

from tinygrok.engine.rng import generator
from tinygrok.models.mlp import TwoLayerNet
from tinygrok.probes import neurons
from tinygrok.probes.fourier import ipr, mean_known, neuron_ipr
from tinygrok.probes.phases import phase_history
from tinygrok.training import ensembles

SHARES = np.linspace(0, 0.95, 39)  # of the neurons, which are removed
KEEP = 5  # frequencies of the filtration curves
CUTS = {"low_half": ("IPR, lowest first", 0.5), "high_30": ("IPR, highest first", 0.3)}


def record(run, order):
    """Beside losses and accuracies: mean IPR and norm of every set of rows (_nets.py), the gradient
    share of corrupted labels, which examples are answered as given, and, of two-layer networks, the
    test accuracy that one frequency a neuron gives."""
    row = {"gradient_share": ensembles.gradient_shares(run)}
    weights = [run.params.to_host(e) for e in range(run.params.members)]
    for name in _nets.rows_of(weights[0]):
        iprs = [mean_known(ipr(_nets.rows_of(w, order)[name])) for w in weights]
        norms = [np.linalg.norm(_nets.rows_of(w)[name]) for w in weights]
        row[f"ipr_{name}"] = np.array(iprs)
        row[f"norm_{name}"] = np.array(norms)
    if type(run.model) is TwoLayerNet:
        kept = [neurons.filtered(w, 1, order)[0] for w in weights]
        accuracies = [ensembles.part_accuracy(run, e, G, "test") for e, G in enumerate(kept)]
        row["filtered_test"] = np.array(accuracies)
    row["as_given"] = run.evaluation.predicted == run.evaluation.labels["given"]
    return row


class Outcomes:
    """What became of every network: its history and its results.

    points   those of the networks; a control may come last
    """

    def __init__(self, run, args, points, order):
        # A finished run that was resumed has measured nothing yet.
        run.evaluation(run.objective, run.table)
        self.run = run
        self.args = args
        self.points = points
        self.order = order
        self.seeds = range(args.seeds)
        members = [ensembles.member_history(run.history, e) for e in self.seeds]
        self.as_given = [history.pop("as_given") for history in members][0]
        self.members = members
        self.history = members[0] if args.seeds == 1 else self.all_histories()
        self.splits = ensembles.member_splits(run, 0)
        self.weights = run.params.to_host(0)

    def all_histories(self):
        """{"step": (T,), quantity: (T, seeds)}"""
        columns = {}
        for name in self.members[0]:
            columns[name] = np.stack([history[name] for history in self.members], axis=1)
        return columns | {"step": self.members[0]["step"]}

    def of_seed(self, e):
        """The results of one network."""
        return ensembles.outcome(self.members[e], self.points[e])

    def results(self):
        """(results, what is printed of them): those of the first network, and with several seeds
        all of them with their quartiles."""
        results = self.of_seed(0)
        if self.args.seeds == 1:
            return results, None
        by_seed = [self.of_seed(e) | _seeds.steps_of_99(self.run, e) for e in self.seeds]
        summary = _seeds.summary(by_seed)
        phases = Counter(summary["phase_by_seed"])
        shown = {f"phase: {name}": f"{count} networks" for name, count in phases.items()}
        return results | summary, shown | _seeds.shown(summary, self.args.steps)

    def commonest_phases(self):
        """The phase of most networks at every measurement."""
        args = self.args
        histories = [phase_history(history, args.corruption, args.p) for history in self.members]
        together = zip(*histories, strict=True)
        return [Counter(names).most_common(1)[0][0] for names in together]

    def releases(self, path):
        """Draw when the first network memorised the corrupted examples, and let them go."""
        wrong, _ = self.splits["corrupted"]
        steps = self.history["step"]
        plots.releases(steps, *neurons.memory_times(steps, self.as_given[:, wrong]), path)


class Anatomy(Outcomes):
    """What is measured of two-layer networks after the training: of every network, and what the
    figures show of the first. The control is the last point.

    pruned   {order of removal: {split: (seeds, n) accuracies at SHARES}}
    filtered {network: {part: (seeds, KEEP) accuracies}}, of the one control (1, KEEP)
    """

    def __init__(self, run, args, points, order):
        super().__init__(run, args, points, order)
        self.hidden = ensembles.hidden_units(run, 0, self.weights)
        initial = run.model.init(generator(args.seed, "init"))
        final = neuron_ipr(self.weights, order)
        self.ipr = {"initial": neuron_ipr(initial, order), "final": final}
        self.filtered = {}
        self.pruned = {}
        self.needed = []
        for e in self.seeds:
            self.filter(e)
            self.prune(e)
        self.add_filtered("random labels", args.seeds, run.params.to_host(args.seeds), None)

    def filter(self, e):
        """Fill in the filtration of one seed: of the trained network, and of its first weights."""
        initial = self.run.model.init(generator(self.args.seed + e, "init"))
        self.add_filtered("trained", e, self.run.params.to_host(e), None)
        self.add_filtered("initial weights", e, initial, self.run.model.init_buffers())

    def add_filtered(self, name, e, weights, buffers):
        accuracy = functools.partial(ensembles.part_accuracy, self.run, e, buffers=buffers)
        parts = neurons.filtration(weights, accuracy, KEEP, self.order)
        self.add_rows(self.filtered, name, parts)

    def prune(self, e):
        """Fill in the pruning curves, and the neurons needed, of one seed."""
        weights = self.run.params.to_host(e)
        splits = ensembles.member_splits(self.run, e)
        a = ensembles.hidden_units(self.run, e, weights)
        seed = self.args.seed + e
        removals = orders.removals(weights, a, splits["test"], seed, self.order)
        for name, removal in removals.items():
            curves = neurons.pruning_curves(a, weights["W"], removal, splits, SHARES)
            self.add_rows(self.pruned, name, curves)
        by_ipr = removals["IPR, lowest first"]
        self.needed.append(neurons.neurons_needed(a, weights["W"], by_ipr, *splits["test"]))

    @staticmethod
    def add_rows(tables, name, rows):
        """Append rows {column: (n,)} to tables {name: {column: (seeds, n)}}."""
        table = tables.setdefault(name, {})
        for column, row in rows.items():
            table[column] = np.vstack([*table.get(column, []), row])

    def score(self, kind):
        return neurons.scores(self.weights, kind, order=self.order)

    def results(self):
        results, shown = super().results()
        if self.args.regularizer == "batchnorm":
            ipr_and_gain = self.ipr["final"], self.score("gain")
            results["rank_correlation_ipr_gamma"] = orders.rank_correlation(*ipr_and_gain)
        return results, shown

    def of_seed(self, e):
        results = super().of_seed(e)
        results["ipr_mean"] = mean_known(neuron_ipr(self.run.params.to_host(e), self.order))
        results["neurons_needed_for_99_test"] = self.needed[e]
        for name, (removal, share) in CUTS.items():
            at = np.abs(SHARES - share).argmin()
            for split in ("corrupted", "test"):
                results[f"pruned_{name}_{split}"] = float(self.pruned[removal][split][e, at])
        for name, parts in self.filtered.items():
            for part, accuracies in parts.items():
                key = f"filter_{part}_{name}".replace(" ", "_")
                results[key] = float(accuracies[min(e, len(accuracies) - 1), 0])
        return results

    def figures(self, out):
        args = self.args
        plots.training(self.history, self.commonest_phases(), out / "training.png")
        gain = None
        if args.regularizer == "batchnorm":
            gain = self.ipr["final"], self.score("gain"), self.score("readout")
        plots.neurons(self.ipr, self.pruned, SHARES, self.filtered, gain, out / "neurons.png")
        wrong, given = self.splits["corrupted"]
        units = self.hidden[wrong], self.weights["W"]
        margins = orders.contributions(*units, given[wrong], self.ipr["final"])
        predicted = self.run.evaluation.predicted[0]
        flat = (predicted, given, self.splits["test"][1], self.splits["train"][0])
        tables = [x.reshape(args.p, args.p) for x in flat]
        plots.examples(*tables, margins, out / "examples.png")
        self.releases(out / "releases.png")
