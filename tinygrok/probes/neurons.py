"""Who memorises and who generalises: pruning by a score, frequency filtration, margins.

All on host arrays of one network: weights {"U": (S, p, N), "W": (N, C)}, its hidden units a (B, N)
as the read-out sees them (after BatchNorm where there is one), and integer labels.
"""

from collections.abc import Callable, Iterator

import numpy as np

from ..engine.border import integers
from ..engine.errors import InputError, require_known
from .fourier import neuron_ipr, neuron_rows, spectrum
from .representation import unit

Weights = dict[str, np.ndarray]
SCORES = ("ipr", "gain", "readout", "random")


def scores(weights: Weights, kind: str, seed=0, order=None) -> np.ndarray:
    """A score per neuron to prune by.

    "ipr"      of the neuron along `order` (see neuron_ipr); 0 for a dead neuron
    "gain"     |gain_k| of BatchNorm
    "readout"  |gain_k| |W_k|: the strength of a unit of variance 1
    "random"   a random order
    """
    require_known(kind, SCORES, "score")
    if kind in ("gain", "readout") and "norm.gain" not in weights:
        raise InputError(f"the score {kind!r} needs a network with BatchNorm")
    match kind:
        case "ipr":
            score = np.nan_to_num(neuron_ipr(weights, order))
        case "gain":
            score = np.abs(weights["norm.gain"])
        case "readout":
            score = np.abs(weights["norm.gain"]) * np.linalg.norm(weights["W"], axis=1)
        case _:
            score = np.random.default_rng(seed).permutation(len(weights["W"]))
    return score.astype(float)


def pruning_curves(a, w, order, splits: dict[str, tuple], shares) -> dict[str, np.ndarray]:
    """Accuracy of every split {name: (mask (B,), labels (B,))} without the first share of neurons.

    order   the neurons, in the order of removal
    Source: To grok or not to grok."""
    curves = {name: np.full(len(shares), np.nan) for name in splits}
    for i, z in pruned_logits(a, w, order, shares):
        predicted = z.argmax(axis=1)
        for name, (mask, labels) in splits.items():
            if mask.any():
                curves[name][i] = (predicted == labels)[mask].mean()
    return curves


def pruned_logits(a, w, order, shares) -> Iterator[tuple[int, np.ndarray]]:
    """(i, logits (B, C)) without the first share i of neurons, largest shares first.

    z(n) = sum over the neurons that are left of a_k W_k: built up from the last neuron backwards,
    so that all shares cost one forward pass, no training. The logits are overwritten by the next.
    """
    counts = np.round(np.asarray(shares) * len(order)).astype(int)
    z = np.zeros((len(a), w.shape[1]), dtype=a.dtype)
    end = len(order)
    for i in np.argsort(-counts, kind="stable"):
        added = order[counts[i] : end]
        z += a[:, added] @ w[added]
        end = counts[i]
        yield int(i), z


def neurons_needed(a, w, order, mask, labels, level=0.99) -> int | None:
    """The smallest number of neurons, kept from the end of the order, that reaches the accuracy.

    None if none does."""
    shares = np.arange(len(order)) / len(order)
    curves = pruning_curves(a, w, order, {"split": (mask, labels)}, shares)
    reached = np.flatnonzero(curves["split"] >= level)
    return None if len(reached) == 0 else len(order) - int(reached[-1])


def margin_shares(a: np.ndarray, w: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(B, N) what every neuron adds to the logit of the label minus the mean logit."""
    above = w.T - w.mean(axis=1)  # (C, N)
    return a * above[integers(labels, "labels", 0, len(above) - 1)]


def filtered(weights: Weights, keep=1, order=None) -> tuple[Weights, Weights]:
    """(G, R): every neuron split into its `keep` strongest frequencies, and the rest.

    The same frequencies for all its rows and its read-out column. Strength: the sum of the
    normalised spectra of U_1k, ..., U_Sk and W_k, frequency 0 excluded. Waves run along `order`
    (see neuron_ipr); inputs and classes outside it go to R.

    Source: arXiv 2605.18022 (frequency filtration). The filter is a strong read-out: always show it
    beside the initial weights and beside a network trained on random labels only.
    """
    parts = neuron_rows(weights, order)
    strength = np.sum([unit(spectrum(x)) for x in parts], axis=0)
    ranking = 1 + np.argsort(-strength[:, 1:], axis=1, kind="stable")
    strongest = ranking[:, :keep]
    mask = np.zeros(strength.shape, dtype=bool)
    np.put_along_axis(mask, strongest, True, axis=1)

    def masked(x: np.ndarray) -> np.ndarray:
        return np.fft.irfft(np.fft.rfft(x) * mask, n=x.shape[1])

    along = slice(None) if order is None else order
    kept = {name: np.zeros(weights[name].shape) for name in ("U", "W")}
    for s, x in enumerate(parts[:-1]):
        kept["U"][s, along] = masked(x).T
    kept["W"][:, along] = masked(parts[-1])
    rest = {name: weights[name] - kept[name] for name in kept}
    return kept, rest


def filtration(
    weights: Weights, accuracy: Callable, keep: int, order=None
) -> dict[str, np.ndarray]:
    """{"G test", "R corrupted"}: accuracies (keep,) of the two parts with 1 .. keep frequencies.

    accuracy(part, split)   of a network made of a part of these weights"""
    general = np.empty(keep)
    rest = np.empty(keep)
    for i in range(keep):
        G, R = filtered(weights, i + 1, order)
        general[i] = accuracy(G, "test")
        rest[i] = accuracy(R, "corrupted")
    return {"G test": general, "R corrupted": rest}


def memory_times(steps: np.ndarray, as_given: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(memorised, released) of every corrupted example: steps, nan for never.

    The first measured step at which it is answered as given, and the first step after its last such
    answer. as_given (T, n) booleans at the measured steps (T,)."""
    steps = np.asarray(steps, dtype=float)
    ever = as_given.any(axis=0)
    memorised = np.where(ever, steps[as_given.argmax(axis=0)], np.nan)
    end = len(steps) - 1
    last = end - as_given[::-1].argmax(axis=0)
    after = steps[np.minimum(last + 1, end)]
    released = np.where(ever & (last < end), after, np.nan)
    return memorised, released
