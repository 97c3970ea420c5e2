"""Representations of numbers and of pairs of numbers mod p: principal components, circles,
similarities.

`order` stands for the powers 1, g, g^2, ... of a primitive root g, (p-1,): along it a function of
the discrete logarithm is a periodic signal. No test below depends on which g it is.
"""

import math

import numpy as np


def pca(x: np.ndarray, components: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Principal components of the rows of x (n, d): x - mean = U S V^T, scores U S.

    scores (n, c), shares of the variance S^2 / sum S^2 (c,), directions (c, d), c = min(components,
    n, d). The largest absolute score of every component is positive. Data and directions are
    centred."""
    centred = x - x.mean(axis=0)
    u, s, v = np.linalg.svd(centred, full_matrices=False)
    scores = (u * s)[:, :components]
    sign = np.sign(scores[np.abs(scores).argmax(axis=0), np.arange(scores.shape[1])])
    sign[sign == 0] = 1
    return (
        scores * sign,
        (s**2 / max((s**2).sum(), np.finfo(float).tiny))[:components],
        v[:components] * sign[:, None],
    )


def character_power(feature: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Shares of the non-constant power of feature (p, d) in the pairs of characters {m, p-1-m}, m =
    1..(p-1)/2.

    f(g^k) = sum_m c_m exp(2 pi i m k/(p-1)),  share_m = (|c_m|^2 + |c_-m|^2) / sum over all m != 0, |.| over d; the last
    one is the Legendre symbol alone. 0 is left out. All nan for a feature that does not depend on
    the number."""
    n = len(order)
    power = (np.abs(np.fft.rfft(feature[order], axis=0)) ** 2).sum(axis=1)
    power[1 : (n + 1) // 2] *= 2
    constant, power = power[0], power[1:]
    return (
        power / power.sum()
        if power.sum() > 1e-12 * constant and power.sum() > 0
        else np.full(len(power), np.nan)
    )


def circle(feature: np.ndarray, order: np.ndarray) -> dict:
    """The generator-free circle test of feature (p, d).

    m, share   the strongest pair of characters {m, p-1-m} and its share of the non-constant power
    gcd        of m and p - 1: with 1 the numbers 1..p-1 lie on one circle, in the order of the powers of
    base       the primitive root whose logarithm has frequency one, log_base n = +-m log_g n: of it and its inverse, which
               goes round the other way, the smaller (None when gcd > 1)
    zero       distance of 0 from the centre, in units of the circle's radius
    Noise in many dimensions has share 2/(p-2) in every pair.
    """
    shares, n = character_power(feature, order), len(order)
    if np.isnan(shares).any():
        return {"m": 0, "share": math.nan, "gcd": n, "base": None, "zero": math.nan}
    m = int(shares.argmax()) + 1
    others = feature[order]
    radius = np.sqrt(((others - others.mean(axis=0)) ** 2).sum(axis=1).mean())
    return {
        "m": m,
        "share": float(shares[m - 1]),
        "gcd": math.gcd(m, n),
        "base": int(min(order[[pow(m, -1, n), -pow(m, -1, n)]])) if math.gcd(m, n) == 1 else None,
        "zero": float(np.linalg.norm(feature[0] - others.mean(axis=0)) / radius),
    }


def legendre(feature: np.ndarray, order: np.ndarray) -> dict:
    """Even and odd logarithms in two planes: three principal components of feature (p, d).

    correlation (3,)  of each component with the Legendre symbol (n|p) = (-1)^log n over n = 1..p-1
    component         the one with the largest |correlation|
    r2                R^2 of the other two on cos and sin(2 pi m log n/(p-1)) at their best m
    scores (p, 3)
    """
    scores, _, _ = pca(feature, 3)
    symbol, along = (-1.0) ** np.arange(len(order)), scores[order]
    along = along - along.mean(axis=0)
    norms = np.linalg.norm(along, axis=0) * math.sqrt(len(order))
    correlation = symbol @ along / np.where(norms > 0, norms, 1)
    component = int(np.abs(correlation).argmax())
    others = circle(np.delete(scores, component, axis=1), order)
    return {
        "correlation": correlation,
        "component": component,
        "r2": others["share"],
        "scores": scores,
    }


def cosine_map(x: np.ndarray) -> np.ndarray:
    """<u_i, u_j> of the rows of x (n, d), each standardised over its d entries (unbiased, + 1e-8)
    and scaled to length 1.

    (As in the authors' code.)
    """
    u = x - x.mean(axis=1, keepdims=True)
    u = u / (u.std(axis=1, ddof=1, keepdims=True) + 1e-8)
    u = u / np.maximum(np.linalg.norm(u, axis=1, keepdims=True), np.finfo(u.dtype).tiny)
    return u @ u.T


def pair_score(similarity: np.ndarray, labels: np.ndarray) -> float:
    """Mean similarity (n, n) over pairs i != j with equal labels (n,) minus the mean over the
    others; label < 0: left out."""
    use = labels >= 0
    similarity, labels = similarity[np.ix_(use, use)], labels[use]
    equal = labels[:, None] == labels
    different = ~equal
    np.fill_diagonal(equal, False)
    return (
        float(similarity[equal].mean() - similarity[different].mean())
        if equal.any() and different.any()
        else math.nan
    )
