"""Who memorises and who generalises: pruning by a score, frequency filtration, and the neurons
behind one example.

All on host arrays of one network: weights {"U": (S, p, N), "W": (N, C)}, its hidden units a (B, N)
as the read-out sees them (after BatchNorm where there is one), and integer labels.
"""

from collections.abc import Callable

import numpy as np

from ..engine.errors import InputError
from .fourier import neuron_ipr, neuron_rows, spectrum

Weights = dict[str, np.ndarray]


def scores(
    weights: Weights, kind: str, seed: int = 0, order: np.ndarray | None = None
) -> np.ndarray:
    """A score per neuron to prune by: "ipr" (along order, see neuron_ipr; 0 for a dead neuron);
    "norm" |W_k|; "product" prod_s |U_sk| |W_k|; "gain" |gain_k|; "readout"
    |gain_k| |W_k| (the strength of a unit of variance 1); "random"."""
    norm_w = np.linalg.norm(weights["W"], axis=1)
    if kind in ("gain", "readout") and "norm.gain" not in weights:
        raise InputError(f"the score {kind!r} needs a network with BatchNorm")
    options = {
        "ipr": lambda: np.nan_to_num(neuron_ipr(weights, order)),
        "norm": lambda: norm_w,
        "product": lambda: np.prod(np.linalg.norm(weights["U"], axis=1), axis=0) * norm_w,
        "gain": lambda: np.abs(weights["norm.gain"]),
        "readout": lambda: np.abs(weights["norm.gain"]) * norm_w,
        "random": lambda: np.random.default_rng(seed).permutation(len(norm_w)),
    }
    if kind not in options:
        raise InputError(f"unknown score {kind!r}: choose {', '.join(options)}")
    return options[kind]().astype(float)


def pruning_curves(
    a: np.ndarray,
    w: np.ndarray,
    order: np.ndarray,
    splits: dict[str, tuple[np.ndarray, np.ndarray]],
    shares: np.ndarray,
) -> dict[str, np.ndarray]:
    """Accuracy of every split {name: (mask (B,), labels (B,))} after removing the first share of
    the neurons in order.

    z(n) = sum over the neurons that are left of a_k W_k: built up from the last neuron backwards,
    so that the whole curve costs one forward pass. No retraining. Source: To grok or not to grok,
    section 3.2 (pruning)."""
    counts = np.round(np.asarray(shares) * len(order)).astype(int)
    z, end = np.zeros((len(a), w.shape[1]), dtype=a.dtype), len(order)
    curves = {name: np.empty(len(counts)) for name in splits}
    for i in np.argsort(-counts, kind="stable"):
        added = order[counts[i] : end]
        z += a[:, added] @ w[added]
        end = counts[i]
        predicted = z.argmax(axis=1)
        for name, (mask, labels) in splits.items():
            curves[name][i] = (predicted == labels)[mask].mean() if mask.any() else np.nan
    return curves


def neurons_needed(
    a: np.ndarray,
    w: np.ndarray,
    order: np.ndarray,
    mask: np.ndarray,
    labels: np.ndarray,
    level=0.99,
) -> int | None:
    """The smallest number of neurons, kept from the end of the order, that reaches the accuracy;
    None if none does."""
    shares = np.arange(len(order)) / len(order)
    curve = pruning_curves(a, w, order, {"split": (mask, labels)}, shares)["split"]
    reached = np.flatnonzero(curve >= level)
    return None if len(reached) == 0 else len(order) - int(reached[-1])


def margin_order(a: np.ndarray, w: np.ndarray, mask: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Oracle order for comparison: first the neurons that add least to the mean margin (right logit
    minus mean logit) of the masked inputs. The margin is a sum over neurons, so removing greedily
    and sorting once are the same."""
    a, labels = a[mask], labels[mask]
    above = w.T - w.mean(axis=1)  # (C, N)
    return np.argsort((a * above[labels]).mean(axis=0), kind="stable")


def removals(
    weights: Weights,
    a: np.ndarray,
    test: tuple[np.ndarray, np.ndarray],
    seed: int = 0,
    order: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Orders of removal {name: neurons}: by IPR (along order), by chance, and by a rival score.

    The rival is |gain| with BatchNorm, else the margins of the test inputs (mask, labels)."""

    def by(kind: str) -> np.ndarray:
        return np.argsort(scores(weights, kind, seed, order), kind="stable")

    found = {"IPR, lowest first": by("ipr"), "IPR, highest first": by("ipr")[::-1]}
    found["chance"] = by("random")
    if "norm.gain" in weights:
        found["|gain|, lowest first"] = by("gain")
    else:
        found["test margin, least first"] = margin_order(a, weights["W"], *test)
    return found


def filtered(
    weights: Weights, keep: int = 1, order: np.ndarray | None = None
) -> tuple[Weights, Weights]:
    """(G, R): every neuron split into its `keep` strongest frequencies, the same for all its rows
    and its read-out column, and the rest. Strength: the sum of the normalised spectra of U_1k, ...,
    U_Sk and W_k, frequency 0 excluded. Waves run along `order` (see neuron_ipr); inputs and classes
    outside it go to R.

    Source: arXiv 2605.18022 (frequency filtration). The filter is a strong read-out: always show it
    beside the initial weights and beside a network trained on random labels only.
    """
    parts = neuron_rows(weights, order)
    total = 0.0
    for x in parts:
        s = spectrum(x)
        norms = np.linalg.norm(s, axis=-1, keepdims=True)
        total = total + s / np.where(norms, norms, 1)
    strongest = np.argsort(-total[:, 1:], axis=1, kind="stable")[:, :keep] + 1
    mask = np.zeros(total.shape, dtype=bool)
    np.put_along_axis(mask, strongest, True, axis=1)
    waves = [np.fft.irfft(np.fft.rfft(x) * mask, n=x.shape[1]) for x in parts]
    at = slice(None) if order is None else order
    kept = {name: np.zeros(weights[name].shape) for name in ("U", "W")}
    for s, wave in enumerate(waves[:-1]):
        kept["U"][s, at] = wave.T
    kept["W"][:, at] = waves[-1]
    return kept, {name: weights[name] - kept[name] for name in kept}


def filtration(
    weights: Weights,
    accuracy: Callable[[Weights, str], float],
    keep: int,
    order: np.ndarray | None = None,
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


def contributions(
    a: np.ndarray, w: np.ndarray, labels: np.ndarray, ipr: np.ndarray, threshold: float = 0.5
) -> tuple:
    """(periodic, other): what neurons above and below an IPR add to the logit of each example's
    label, minus what they add to its mean logit; their sum is the margin over the mean. Shapes
    (B,)."""
    above = w.T - w.mean(axis=1)  # (C, N)
    share = a * above[labels]
    periodic = np.nan_to_num(ipr) > threshold
    return share[:, periodic].sum(axis=1), share[:, ~periodic].sum(axis=1)


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's correlation of two sequences without ties (continuous values)."""
    ranks = [np.argsort(np.argsort(v)) for v in (x, y)]
    return float(np.corrcoef(*ranks)[0, 1])


def memory_times(steps: np.ndarray, as_given: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(memorised, released) of every corrupted example: the first measured step at which it is
    answered as given, and the first step after its last such answer; nan for never. as_given (T, n)
    booleans at the measured steps (T,)."""
    steps = np.asarray(steps, dtype=float)
    ever = as_given.any(axis=0)
    memorised = np.where(ever, steps[as_given.argmax(axis=0)], np.nan)
    last = len(steps) - 1 - as_given[::-1].argmax(axis=0)
    released = np.where(
        ever & (last < len(steps) - 1), steps[np.minimum(last + 1, len(steps) - 1)], np.nan
    )
    return memorised, released
