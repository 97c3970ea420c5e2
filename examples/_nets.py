"""The networks behind --net, for the examples that train on tables of pairs: how one is built, what
is refused, what is measured of it beside losses and accuracies."""

import functools

import _memory as memory
import numpy as np

from tinygrok import cli
from tinygrok.models.mlp import TwoLayerNet
from tinygrok.models.pairs import PairTransformer, ThreeLayerNet
from tinygrok.ops.loss import ROW_LOSSES
from tinygrok.probes.fourier import answer_means, answer_waves, ipr, mean_known, neuron_rows

NETS = {"mlp2": "two layers", "mlp3": "three layers", "transformer": "one block on two tokens"}
NO_ACTIVATION = "not with --net transformer, whose MLP is one of ReLU"
KEY_SHARE = 0.05  # of the power of the answer's waves: a frequency that has more is a key one


# -- flags -----------------------------------------------------------------------------------------


def add_flag(p, argv, usual, activation):
    """The flag --net, the last one of a parser: its value, with the defaults {network: {flag:
    value}} that go with it.

    activation   that flag, which lists in --help what a network takes"""
    about = "; ".join(f"{name}: {what}" for name, what in NETS.items())
    about += "; each has defaults of its own, which it shows with --help"
    p.add_argument("--net", default="mlp2", choices=list(NETS), help=about)
    chosen = cli.chosen(p, argv).net
    p.set_defaults(**usual[chosen])
    if chosen == "transformer":
        activation.help = NO_ACTIVATION
    return chosen


def check(net, activation=None, dropout=0.0, batchnorm=False):
    """Refuse what makes no sense for a network; activation: None where the flag was not given."""
    if net == "transformer" and activation is not None:
        raise cli.InputError(f"--activation: {NO_ACTIVATION}")
    if net == "transformer" and dropout:
        raise cli.InputError("dropout is not defined with --net transformer")
    if net != "mlp2" and batchnorm:
        raise cli.InputError(f"BatchNorm is not defined with --net {net}")


def build(net, p, width, activation, terms=2):
    if net == "transformer":
        return PairTransformer(p, width)
    if net == "mlp3":
        return ThreeLayerNet(p, width, activation=activation)
    return TwoLayerNet(p, width, terms, activation)


def memory_of(dev, net, p, width, members=1, terms=2):
    """Parts of a network on the table of a modulus."""
    if net == "mlp2":
        return memory.table(dev, p, width, members, terms)
    size = 3 * p * width + width**2
    activations = 5 * width
    if net == "transformer":
        size = 2 * p * width + 12 * width**2
        activations = 30 * width
    return memory.table(dev, p, width, members, 2, size, activations)


# -- what is measured ------------------------------------------------------------------------------


def rows_of(weights, order=None):
    """{name: (n, places)} the rows of a network along which it may have waves.

    Of the networks of layers U1, U2 and W, a row a neuron; of a Transformer E and W, a row a
    channel: what it holds for every token, and what it gives to every answer."""
    if "U" in weights:
        *inputs, readout = neuron_rows(weights, order)
        return {f"U{s + 1}": x for s, x in enumerate(inputs)} | {"W": readout}
    kept = slice(None) if order is None else order
    return {"E": weights["embed.token"][kept].T, "W": weights["head"][kept].T}


def every_member(run, measure):
    """measure(host weights) -> number, of the network, or an array of those of an ensemble."""
    if run.params.members is None:
        return measure(run.params.to_host())
    return np.array([measure(run.params.to_host(e)) for e in range(run.params.members)])


def mean_ipr(weights, order):
    """The mean IPR of the embedding's rows of a Transformer, of all rows of another network."""
    rows = rows_of(weights, order)
    chosen = [rows["E"]] if "E" in rows else list(rows.values())
    return mean_known(ipr(np.concatenate(chosen)))


def logits_of(run):
    """Logits (B, C) of one network on what is measured, on the host."""
    parts = [run.dev.to_host(run.objective.logits(shard).copy()) for shard in run.table.shards()]
    return np.concatenate(parts)


def row_losses(run, logits, labels):
    """The loss (B,) of every row, by the run's kind of loss, on the host."""
    dev = run.dev
    rows = ROW_LOSSES[run.objective.loss]
    losses, _ = rows(dev, dev.to_device(logits), dev.to_device(labels))
    return dev.to_host(losses)


class Waves:
    """The logits of one network by the waves of the answer (probes/fourier.py).

    Inputs whose answer is in no wave (0 of products) are left out."""

    def __init__(self, run):
        labels = run.evaluation.labels["true"]
        place = np.full(run.model.classes, -1)
        place[run.order] = np.arange(len(run.order))
        known = np.isin(labels, run.order)
        train, _ = run.evaluation.splits["train"]
        self.run = run
        self.train = known & train
        self.labels = labels
        self.at = place[labels]
        self.logits = logits_of(run)
        self.means = answer_means(self.logits, labels, run.order)

    def excluded(self, frequencies):
        """The loss of the training pairs without some frequencies."""
        waves = answer_waves(self.means, frequencies)
        chosen = self.train
        logits = self.logits[chosen] - waves[self.at[chosen]]
        return float(row_losses(self.run, logits, self.labels[chosen]).mean())


def restricted(run, means, frequencies):
    """The loss of all pairs with the constant and some frequencies alone; means: answer_means."""
    logits = answer_waves(means, [0, *frequencies])
    return float(row_losses(run, logits, run.order).mean())


def shares(means):
    """(1 + p//2,) share of the power of the answer's waves that a frequency has, 0 excluded."""
    power = (np.abs(np.fft.rfft(means, axis=0)) ** 2).sum(axis=1)
    power[0] = 0
    return power / power.sum()


def key_frequencies(means):
    """The frequencies whose share of the power is above KEY_SHARE, the strongest first."""
    found = shares(means)
    strongest = np.argsort(-found, kind="stable")
    return [int(k) for k in strongest if found[k] > KEY_SHARE]


def record(run):
    """What is measured of every network: the mean IPR; of one alone that is no mlp2 also the
    answer's waves, and the loss without each frequency."""
    if run.order is None or len(run.order) < 3:
        return {}
    row = {"ipr_mean": every_member(run, functools.partial(mean_ipr, order=run.order))}
    if run.params.members is None and type(run.model) is not TwoLayerNet:
        waves = Waves(run)
        row["answer_means"] = waves.means
        alone = [waves.excluded([k]) for k in range(1, len(run.order) // 2 + 1)]
        row["excluded_alone"] = np.array([np.nan, *alone])
    return row


def columns(history):
    """The record without the arrays that no table holds."""
    return {
        name: x for name, x in history.items() if name not in ("answer_means", "excluded_alone")
    }


def results(run):
    """Restricted and excluded loss at the end by the key frequencies; {} where record has none."""
    if "answer_means" not in run.history:
        return {}
    waves = Waves(run)
    key = key_frequencies(waves.means)
    return {
        "key_frequencies": key,
        "restricted_loss": restricted(run, waves.means, key),
        "excluded_loss": waves.excluded(key),
    }
