"""Representations of numbers mod p: components, circles, similarities.

`order` stands for the powers 1, g, g^2, ... of a primitive root g, (p-1,): along it a function of
the discrete logarithm is a periodic signal. No test below depends on which g it is.
"""

import math

import numpy as np

from ..engine.border import integers


def pca(x: np.ndarray, components: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Principal components of the rows of x (n, d): x - mean = U S V^T, scores U S.

    scores (n, c), shares of the variance S^2 / sum S^2 (c,), directions (c, d), c = min(components,
    n, d). The largest absolute score of every component is positive. Data and directions are
    centred."""
    centred = x - x.mean(axis=0)
    u, s, v = np.linalg.svd(centred, full_matrices=False)
    scores = (u * s)[:, :components]
    largest = np.abs(scores).argmax(axis=0)
    sign = np.sign(scores[largest, np.arange(scores.shape[1])])
    sign[sign == 0] = 1
    variance = max((s**2).sum(), np.finfo(float).tiny)
    shares = (s**2 / variance)[:components]
    return scores * sign, shares, v[:components] * sign[:, None]


def character_power(feature: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Shares of the non-constant power of feature (p, d) in pairs of characters {m, p-1-m}.

    f(g^k) = sum_m c_m exp(2 pi i m k/(p-1)),  share_m = (|c_m|^2 + |c_-m|^2) / sum over m != 0
    for m = 1..(p-1)/2, |.| over d; the last one is the Legendre symbol alone. 0 is left out. All
    nan for a feature that does not depend on the number."""
    order = integers(order, "the order", 1, len(feature) - 1)
    n = len(order)
    waves = np.fft.rfft(feature[order], axis=0)
    power = (np.abs(waves) ** 2).sum(axis=1)
    power[1 : (n + 1) // 2] *= 2
    constant = power[0]
    pairs = power[1:]
    total = pairs.sum()
    if total > 0 and total > 1e-12 * constant:
        return pairs / total
    return np.full(len(pairs), np.nan)


def circle(feature: np.ndarray, order: np.ndarray) -> dict:
    """The generator-free circle test of feature (p, d).

    m, share   the strongest pair of characters {m, p-1-m}, its share of the non-constant power
    gcd        of m and p - 1: with 1 the numbers 1..p-1 lie on one circle, in the order of the
               powers of
    base       the primitive root whose logarithm has frequency one, log_base n = +-m log_g n: of it
               and its inverse, which goes round the other way, the smaller (None when gcd > 1)
    zero       distance of 0 from the centre, in units of the circle's radius
    Noise in many dimensions has share 2/(p-2) in every pair.
    """
    n = len(order)
    shares = character_power(feature, order)
    if np.isnan(shares).any():
        return {"m": 0, "share": math.nan, "gcd": n, "base": None, "zero": math.nan}
    m = int(shares.argmax()) + 1
    gcd = math.gcd(m, n)
    base = None
    if gcd == 1:
        step = pow(m, -1, n)
        base = int(min(order[step], order[-step]))
    others = feature[order]
    centre = others.mean(axis=0)
    radius = np.sqrt(((others - centre) ** 2).sum(axis=1).mean())
    zero = np.linalg.norm(feature[0] - centre) / radius
    return {"m": m, "share": float(shares[m - 1]), "gcd": gcd, "base": base, "zero": float(zero)}


def unit(x: np.ndarray) -> np.ndarray:
    """x / |x| along the last axis; 0 where x is 0."""
    length = np.linalg.norm(x, axis=-1, keepdims=True)
    return x / np.maximum(length, np.finfo(length.dtype).tiny)


def cosine(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """<x_i, y_j> / |x_i| |y_j|, float64    x (..., n, C)   y (V, C)   (..., n, V)"""
    return unit(x.astype(float)) @ unit(y.astype(float)).T
