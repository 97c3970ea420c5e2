"""Which neurons memorise and which generalise, at every measured step, where they come from and
where they go.

    generalising  periodic (IPR >= 0.5), and adds to the margins of unseen pairs
    memorising    not periodic, and adds to the margins of the corrupted labels as given
    idle          all others

A margin is the logit of a label minus the mean logit: a sum over neurons. To add means at least
half of an even share, 1/(2N), of the margin 1 that the one-hot targets ask for, in the mean over
examples."""

import numpy as np
from _neuron_spectra import PERIODIC, common_frequency
from _seeds import quartiles, quartiles_of_steps

from tinygrok.engine.rng import generator
from tinygrok.probes import neurons
from tinygrok.probes.fourier import neuron_ipr
from tinygrok.training import ensembles

CLASSES = ("idle", "memorising", "generalising")
IDLE, MEMORISING, GENERALISING = range(3)


def record(run, order):
    """{"neuron_ipr", "corrupted_share", "test_share"}, each (E, N): the IPR of every neuron, 0 for
    a dead one, and what it adds to the mean margin of corrupted labels, as given, and of unseen
    pairs; nan without any."""
    row = {"neuron_ipr": [], "corrupted_share": [], "test_share": []}
    for e in range(run.params.members):
        weights = run.params.to_host(e)
        row["neuron_ipr"].append(np.nan_to_num(neuron_ipr(weights, order)))
        a = ensembles.hidden_units(run, e, weights)
        splits = ensembles.member_splits(run, e)
        for split in ("corrupted", "test"):
            mask, labels = splits[split]
            shares = neurons.margin_shares(a[mask], weights["W"], labels[mask])
            mean = shares.mean(axis=0) if mask.any() else np.full(a.shape[1], np.nan)
            row[f"{split}_share"].append(mean)
    return {name: np.array(values) for name, values in row.items()}


def classes(history):
    """(T, N) numbers in CLASSES, of the history of one network."""
    iprs = history["neuron_ipr"]
    least = 0.5 / iprs.shape[1]
    generalise = (iprs >= PERIODIC) & (history["test_share"] >= least)
    memorise = (iprs < PERIODIC) & (history["corrupted_share"] >= least)
    return np.select([generalise, memorise], [GENERALISING, MEMORISING], IDLE)


def counts(kinds):
    """(T, 3): how many neurons are of each class."""
    return np.stack([(kinds == kind).sum(axis=1) for kind in range(3)], axis=1)


def shares_of(kinds, chosen):
    """(3,) shares of the classes among some neurons; nan for none."""
    total = np.count_nonzero(chosen)
    return [np.count_nonzero(kinds[chosen] == kind) / (total or np.nan) for kind in range(3)]


def flows(steps, kinds, first, last, order):
    """What became of the neurons of one network.

    first, last   its weights at the start and at the end"""
    memorising = (kinds == MEMORISING).sum(axis=1)
    peak = int(memorising.argmax())
    end = kinds[-1]
    at_start = common_frequency(first, order)[end == GENERALISING]
    at_end = common_frequency(last, order)[end == GENERALISING]
    began, _ = neurons.memory_times(steps, kinds == GENERALISING)
    memorised, released = neurons.memory_times(steps, kinds == MEMORISING)
    return {
        "step_peak": int(steps[peak]),
        "memorising_at_peak": int(memorising[peak]),
        "at_end": counts(kinds)[-1].tolist(),
        "memorising_become": shares_of(end, kinds[peak] == MEMORISING),
        "generalising_were": shares_of(kinds[peak], end == GENERALISING),
        "same_frequency_as_at_start": float((at_start == at_end).mean()) if len(at_end) else None,
        "step_memorises": middle(memorised),
        "step_stops_memorising": middle(released),
        "step_generalises": middle(began[end == GENERALISING]),
    }


def middle(steps):
    """The median over neurons for which something happened; None if for none."""
    known = steps[np.isfinite(steps)]
    return int(quartiles(known)[1]) if len(known) else None


def first_weights(run, seed):
    return run.model.init(generator(seed, "init"))


def summary(found):
    """Quartiles over the seeds of their flows: [first, median, third], of lists one for each
    class."""
    results = {}
    for name in found[0]:
        values = [one[name] for one in found]
        if name.startswith("step_"):
            results[name] = quartiles_of_steps(values)
        else:
            known = [value for value in values if value is not None]
            results[name] = quartiles(known).T.tolist() if known else None
    return results
