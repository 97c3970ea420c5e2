"""Orders in which neurons are removed, and what they add to the answers of corrupted examples."""

import numpy as np

from tinygrok.probes import neurons


def margin_order(a: np.ndarray, w: np.ndarray, mask: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Oracle order for comparison: first the neurons that add least to the mean margin.

    The margin, right logit minus mean logit, of the masked inputs. It is a sum over neurons, so
    removing greedily and sorting once are the same."""
    shares = neurons.margin_shares(a[mask], w, labels[mask])
    return np.argsort(shares.mean(axis=0), kind="stable")


def removals(weights: neurons.Weights, a, test: tuple, seed=0, order=None) -> dict[str, np.ndarray]:
    """Orders of removal {name: neurons}: by IPR (along order), by chance, and by a rival score.

    The rival is |gain| with BatchNorm, else the margins of the test inputs (mask, labels)."""

    def by(kind: str) -> np.ndarray:
        return np.argsort(neurons.scores(weights, kind, seed, order), kind="stable")

    found = {"IPR, lowest first": by("ipr"), "IPR, highest first": by("ipr")[::-1]}
    found["chance"] = by("random")
    if "norm.gain" in weights:
        found["|gain|, lowest first"] = by("gain")
    else:
        found["test margin, least first"] = margin_order(a, weights["W"], *test)
    return found


def contributions(a, w, labels, ipr, threshold=0.5) -> tuple[np.ndarray, np.ndarray]:
    """(periodic, other): what neurons above and below an IPR add to each example's margin.

    The margin is the logit of its label minus its mean logit: the sum of the two. Shapes (B,)."""
    shares = neurons.margin_shares(a, w, labels)
    periodic = np.nan_to_num(ipr) > threshold
    return shares[:, periodic].sum(axis=1), shares[:, ~periodic].sum(axis=1)


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's correlation of two sequences without ties (continuous values)."""
    rank_x = np.argsort(np.argsort(x))
    rank_y = np.argsort(np.argsort(y))
    return float(np.corrcoef(rank_x, rank_y)[0, 1])
