"""Neurons in the Fourier basis: spectra and the inverse participation ratio."""

from collections.abc import Sequence

import numpy as np

from ..engine.border import integers


def spectrum(x: np.ndarray, axis: int = -1) -> np.ndarray:
    """|rfft(x)|, frequencies 0 .. p//2, the constant included.

    >>> wave = np.cos(2 * np.pi * 2 * np.arange(7) / 7)
    >>> spectrum(wave).round(2) + 0  # p/2 at frequency 2
    array([0. , 0. , 3.5, 0. ])
    """
    return np.abs(np.fft.rfft(x, axis=axis))


def ipr(x: np.ndarray, axis: int = -1) -> np.ndarray:
    """IPR(x) = sum_k |F_k|^4 / (sum_k |F_k|^2)^2 with F = rfft(x); nan where x is zero.

    1 for one cosine (or a constant), about 4/p for noise, 1/(p//2 + 1) for a single spike.
    Source: To grok or not to grok, eq. 3 with r = 2, rfft as in the authors' code.

    >>> n = np.arange(97)
    >>> waves = [np.cos(2 * np.pi * 5 * n / 97), n == 3, 0 * n]
    >>> ipr(np.stack(waves)).round(4)
    array([1.    , 0.0204,    nan])
    """
    power = spectrum(x, axis) ** 2
    total = power.sum(axis=axis)
    concentrated = (power**2).sum(axis=axis)
    with np.errstate(invalid="ignore"):
        ratio = concentrated / np.where(total > 0, total, 1) ** 2
        return np.where(total > 0, ratio, np.nan)


def neuron_ipr(weights: dict[str, np.ndarray], order: np.ndarray | None = None) -> np.ndarray:
    """IPR_k of every neuron: the mean over its S input rows and its output column.

    weights {"U": (S, p, N), "W": (N, p)} on the host -> (N,)    (To grok or not to grok, eq. 4)
    order   inputs and classes to keep, in the order along which neurons are waves
            (ModularTask.wave_order): 1, g, g^2, ... of a primitive root g gives the "log-Fourier"
            IPR of multiplication (Grokking modular polynomials)

    >>> from tinygrok.analytic.addition import addition_weights
    >>> from tinygrok.tasks.modular import addition
    >>> float(neuron_ipr(addition_weights(addition(97))).mean().round(6))
    1.0
    """
    return np.mean([ipr(x) for x in neuron_rows(weights, order)], axis=0)


def neuron_rows(weights: dict[str, np.ndarray], order=None) -> list[np.ndarray]:
    """[U_1, ..., U_S, W], each (N, inputs or classes), along which neurons are waves."""
    kept = slice(None)
    if order is not None:
        kept = integers(order, "the order of inputs", 0, weights["W"].shape[1] - 1)
    inputs = [u[kept].T for u in weights["U"]]
    return [*inputs, weights["W"][:, kept]]


def mean_known(x: np.ndarray) -> float:
    """Mean of the entries that are not nan (the IPR of a dead neuron is); nan when none is left."""
    known = x[~np.isnan(x)]
    return float(known.mean()) if known.size else np.nan


def answer_means(logits: np.ndarray, labels: np.ndarray, order: Sequence[int]) -> np.ndarray:
    """(p, C) mean logits of all inputs with the same answer; logits (B, C), labels (B,).

    order   the answers, along which there are waves (ModularTask.wave_order): 0, 1, ... of sums"""
    return np.stack([logits[labels == answer].mean(axis=0) for answer in order])


def answer_waves(means: np.ndarray, frequencies: Sequence[int]) -> np.ndarray:
    """The waves cos(2 pi k y/p), sin(2 pi k y/p) of the answer y = 0, 1, ... in answer_means, of
    some frequencies k: what the logits have along these directions, (p, C).

    With y = n1 + n2 mod p and the key frequencies K of a network:
    restricted logits  z(n1, n2) <- answer_waves(means, [0, *K])[y]                0: the constant
    excluded logits    z(n1, n2) <- z(n1, n2) - answer_waves(means, K)[y]
    The loss of the restricted logits (of all pairs) says how well the network would do by these
    waves alone, that of the excluded ones (of training pairs) how well without them. In the
    source's Transformer the first falls and the second rises before the test loss falls.
    Source: Nanda et al., arXiv 2301.05217, section 5.1 (its code projects on the same directions,
    and excludes one frequency at a time).

    >>> n1, n2 = np.divmod(np.arange(49), 7)
    >>> y = (n1 + n2) % 7
    >>> logits = np.cos(2 * np.pi * 3 * (y[:, None] - np.arange(7)) / 7) + (n1 == 2)[:, None]
    >>> means = answer_means(logits, y, range(7))
    >>> excluded = logits - answer_waves(means, [3])[y]
    >>> bool(np.abs(excluded - (n1 == 2)[:, None]).max() < 1e-12)
    True
    """
    F = np.fft.rfft(means, axis=0)
    kept = np.zeros_like(F)
    kept[frequencies] = F[frequencies]
    return np.fft.irfft(kept, n=len(means), axis=0)
