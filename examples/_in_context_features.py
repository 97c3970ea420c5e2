"""Features of numbers and pairs in an in-context network: even and odd logarithms, similarities.

Parts of in_context_probe.py; `order` stands for the powers of a primitive root, as in
tinygrok.probes.representation.
"""

import math

import numpy as np

from tinygrok.probes.representation import circle, pca, unit


def legendre(feature: np.ndarray, order: np.ndarray) -> dict:
    """Even and odd logarithms in two planes: three principal components of feature (p, d).

    correlation (3,)  of each component with the Legendre symbol (n|p) = (-1)^log n, n = 1..p-1
    component         the one with the largest |correlation|
    r2                R^2 of the other two on cos and sin(2 pi m log n/(p-1)) at their best m
    scores (p, 3)
    """
    scores, _, _ = pca(feature, 3)
    symbol = (-1.0) ** np.arange(len(order))
    along = scores[order]
    along = along - along.mean(axis=0)
    norms = np.linalg.norm(along, axis=0) * math.sqrt(len(order))
    correlation = symbol @ along / np.where(norms > 0, norms, 1)
    component = int(np.abs(correlation).argmax())
    others = np.delete(scores, component, axis=1)
    return {
        "correlation": correlation,
        "component": component,
        "r2": circle(others, order)["share"],
        "scores": scores,
    }


def cosine_map(x: np.ndarray) -> np.ndarray:
    """<u_i, u_j> of the rows of x (n, d), standardised over their d entries, at length 1.

    Standardised with the unbiased deviation + 1e-8, as in the authors' code.
    """
    u = x - x.mean(axis=1, keepdims=True)
    u = u / (u.std(axis=1, ddof=1, keepdims=True) + 1e-8)
    u = unit(u)
    return u @ u.T


def pair_score(similarity: np.ndarray, labels: np.ndarray) -> float:
    """Mean similarity (n, n) over pairs i != j of equal labels (n,) minus the mean over the others.

    label < 0: left out; nan where there are no such pairs or no others."""
    use = labels >= 0
    similarity = similarity[np.ix_(use, use)]
    labels = labels[use]
    equal = labels[:, None] == labels
    different = ~equal
    np.fill_diagonal(equal, False)
    if not equal.any() or not different.any():
        return math.nan
    return float(similarity[equal].mean() - similarity[different].mean())
