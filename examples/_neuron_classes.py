"""Which neurons memorise and which generalise, at every measured step, where they come from and
where they go.

    generalising  periodic (IPR >= 0.5), and adds to the margins of unseen pairs
    memorising    not periodic, and adds to the margins of the corrupted labels as given
    idle          all others

A margin is the logit of a label minus the mean logit: a sum over neurons. A neuron adds to it if
its part, in the mean over the examples, is positive by three standard errors, and at least half of
the part that each neuron would have if all of them had the same of what is added (the parts below
0 left out)."""

import numpy as np
from _neuron_spectra import PERIODIC, common_frequency
from _seeds import listed, quartiles, quartiles_of_steps

from tinygrok.engine.rng import generator
from tinygrok.probes import neurons
from tinygrok.probes.fourier import neuron_ipr
from tinygrok.training import ensembles

CLASSES = ("idle", "memorising", "generalising")
FLOWS = ("memorising_become", "all_become", "generalising_were", "all_were")
IDLE, MEMORISING, GENERALISING = range(3)


def record(run, order):
    """{"neuron_ipr", "memorises", "understands"}, each (E, N): the IPR of every neuron, 0 for a
    dead one, and whether it adds to the margins of the corrupted labels as given, and of unseen
    pairs."""
    row = {"neuron_ipr": [], "memorises": [], "understands": []}
    for e in range(run.params.members):
        weights = run.params.to_host(e)
        row["neuron_ipr"].append(np.nan_to_num(neuron_ipr(weights, order)))
        a = ensembles.hidden_units(run, e, weights)
        splits = ensembles.member_splits(run, e)
        for name, split in (("memorises", "corrupted"), ("understands", "test")):
            mask, labels = splits[split]
            row[name].append(adds(neurons.margin_shares(a[mask], weights["W"], labels[mask])))
    return {name: np.array(values) for name, values in row.items()}


def adds(shares):
    """(N,) whether a neuron adds to the margins, of what every neuron has of them (B, N)."""
    if len(shares) < 2:
        return np.zeros(shares.shape[1], dtype=bool)
    mean = shares.mean(axis=0)
    error = shares.std(axis=0) / np.sqrt(len(shares))
    even = np.maximum(mean, 0).mean()
    return (mean > 3 * error) & (mean >= even / 2)


def classes(history):
    """(T, N) numbers in CLASSES, of the history of one network."""
    periodic = history["neuron_ipr"] >= PERIODIC
    generalise = periodic & history["understands"]
    memorise = ~periodic & history["memorises"]
    return np.select([generalise, memorise], [GENERALISING, MEMORISING], IDLE)


def counts(kinds):
    """(T, 3): how many neurons are of each class."""
    return np.stack([(kinds == kind).sum(axis=1) for kind in range(3)], axis=1)


def shares_of(kinds, chosen):
    """(3,) shares of the classes among some neurons; nan for none."""
    total = np.count_nonzero(chosen)
    return [np.count_nonzero(kinds[chosen] == kind) / (total or np.nan) for kind in range(3)]


def flows(steps, kinds, first, last, order):
    """What became of the neurons of one network; all_become and all_were are what chance gives, if
    what a neuron is at the peak says nothing about what it is at the end.

    first, last   its weights at the start and at the end"""
    memorising = (kinds == MEMORISING).sum(axis=1)
    peak = int(memorising.argmax())
    end = kinds[-1]
    everything = np.ones(len(end), dtype=bool)
    at_start = common_frequency(first, order)[end == GENERALISING]
    at_end = common_frequency(last, order)[end == GENERALISING]
    began, _ = neurons.memory_times(steps, kinds == GENERALISING)
    memorised, released = neurons.memory_times(steps, kinds == MEMORISING)
    ever = ~np.isnan(memorised)
    stops = np.where(np.isnan(released), np.inf, released)
    return {
        "step_peak": int(steps[peak]),
        "memorising_at_peak": int(memorising[peak]),
        "at_end": counts(kinds)[-1].tolist(),
        "memorising_become": shares_of(end, kinds[peak] == MEMORISING),
        "all_become": shares_of(end, everything),
        "generalising_were": shares_of(kinds[peak], end == GENERALISING),
        "all_were": shares_of(kinds[peak], everything),
        "same_frequency_as_at_start": float((at_start == at_end).mean()) if len(at_end) else None,
        "step_memorises": middle(memorised[ever]),
        "step_stops_memorising": middle(stops[ever]),
        "step_generalises": middle(began[end == GENERALISING]),
    }


def middle(steps):
    """The median over neurons; an infinite step, never, is larger than all others. None for no
    neuron, or where the median is infinite."""
    return quartiles_of_steps(steps)[1] if len(steps) else None


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
            results[name] = listed(quartiles(known).T) if known else None
    return results
