"""Features of numbers and pairs in an in-context network: even and odd logarithms, similarities.

Parts of in_context_probe.py; `order` stands for the powers of a primitive root, as in
tinygrok.probes.representation.
"""

import math

import numpy as np

from tinygrok.probes.representation import character_power, circle, pca, unit
from tinygrok.tasks.modular import discrete_log

PERMUTATIONS = 1000
ROUNDING = 1e-5  # of a measure between 0 and 1, in float32


def parity(scores: np.ndarray, order: np.ndarray) -> np.ndarray:
    """(c,): correlation of every component of scores (p, c) with the Legendre symbol
    (n|p) = (-1)^log n, n = 1..p-1; 0 for one that is constant."""
    symbol = (-1.0) ** np.arange(len(order))
    along = scores[order]
    along = along - along.mean(axis=0)
    norms = np.linalg.norm(along, axis=0) * math.sqrt(len(order))
    return symbol @ along / np.where(norms > 0, norms, 1)


def legendre(feature: np.ndarray, order: np.ndarray) -> dict:
    """Even and odd logarithms in two planes: three principal components of feature (p, d).

    correlation (3,)  of each component with the Legendre symbol, see parity
    component         the one with the largest |correlation|
    r2                R^2 of the other two on cos and sin(2 pi m log n/(p-1)) at their best m
    scores (p, 3)
    """
    scores, _, _ = pca(feature, 3)
    correlation = parity(scores, order)
    component = int(np.abs(correlation).argmax())
    others = np.delete(scores, component, axis=1)
    return {
        "correlation": correlation,
        "component": component,
        "r2": circle(others, order)["share"],
        "scores": scores,
    }


def by_chance(measure, order, rng):
    """p-value of measure(order) by permutations: the share of PERMUTATIONS orders of the numbers
    1..p-1, the true one among them, whose measure is at least that of the true one. nan where there
    is no measure.

    Some orders measure the same, as those that turn or mirror a circle: ROUNDING counts them."""
    found = measure(order)
    if math.isnan(found):
        return math.nan
    others = [measure(rng.permutation(order)) for _ in range(PERMUTATIONS - 1)]
    return (1 + sum(other >= found - ROUNDING for other in others)) / PERMUTATIONS


def number(feature, order, rng):
    """Circle and Legendre symbol of a feature (p, d) of numbers, and a row of the figure.

    p-values are those of one feature: that it was chosen among many, for its circle, is not
    corrected for."""
    p = len(feature)

    def circle_share(order):
        return circle(feature, order)["share"]

    found = circle(feature, order)
    symbol = legendre(feature, order)

    def parity_of_log(order):
        return abs(parity(symbol["scores"], order)).max()

    base = found["base"] or int(order[1])
    log = discrete_log(p)
    to_base = log * pow(int(log[base]), -1, p - 1) % (p - 1)
    results = {
        "circle": found["share"],
        "circle_m": found["m"],
        "circle_zero": found["zero"],
        "circle_p": by_chance(circle_share, order, rng),
        "legendre": parity_of_log(order),
        "legendre_r2": symbol["r2"],
        "legendre_p": by_chance(parity_of_log, order, rng),
    }
    row = {
        "scores": pca(feature)[0],
        "scores_without_zero": pca(feature[1:])[0],
        "log": np.where(log < 0, -1, to_base),
        "base": base,
        "legendre": symbol,
        "legendre_p": results["legendre_p"],
        "power": character_power(feature, order),
    }
    return results, row


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
