"""Which examples of its context a model uses: errors on whole lines, and wrong labels.

`logits` is as in tinygrok/probes/shots.py: of triples (B, n, 3), at the y of each."""

import numpy as np

from tinygrok.engine.border import integers
from tinygrok.probes.shots import Logits
from tinygrok.tasks.modular import directions


def line_failures(p: int, correct: np.ndarray, within: np.ndarray, least: float = 0.9) -> dict:
    """Errors that fall on whole lines through 0: the fingerprint of ratio matching.

    correct, within (p^2,): the errors are the wrong queries inside `within`, (0, 0) left out; a
    line fails as a whole when at least `least` of its p - 1 queries are wrong -> errors, on_lines,
    lines (directions y/x; p stands for x = 0)"""
    wrong = within & ~correct
    lines = directions(p)
    share = np.array([wrong[lines == line].mean() for line in range(lines.max() + 1)])
    failed = np.flatnonzero(share >= least)
    return {
        "errors": int(wrong[lines >= 0].sum()),
        "on_lines": int(wrong[np.isin(lines, failed)].sum()),
        "lines": failed.tolist(),
    }


def noise_random(logits: Logits, p: int, triples: np.ndarray, rng) -> dict[str, np.ndarray]:
    """Accuracy after k examples of which m, at random places, have a wrong label.

    The label is z + e, e uniform in 1..p-1; targets stay clean. triples (B, n, 3), clean ->
    accuracy, count (n, n), row k = 0..n-1 examples before the query, column m = 0..k wrong
    ones; nan where no sequence had such m. One pass serves all k: the number of wrong labels in a
    row is uniform in 0..n and their places are a random subset, so that the m of them before a
    query are again a uniform subset of its k.
    """
    triples = integers(triples, "triples", 0, p - 1)
    B, n, _ = triples.shape
    place = rng.permuted(np.tile(np.arange(n), (B, 1)), axis=1)
    wrong = place < rng.integers(n + 1, size=(B, 1))
    truth = triples[..., 2]
    noisy = triples.copy()
    error = rng.integers(1, p, size=(B, n))
    noisy[..., 2] = (truth + wrong * error) % p
    answer = logits(noisy)

    k = np.broadcast_to(np.arange(n), (B, n))
    m = np.cumsum(wrong, axis=1) - wrong  # wrong labels before the query

    def total(value) -> np.ndarray:
        table = np.zeros((n, n))
        np.add.at(table, (k, m), value)
        return table

    count = total(1)
    right = total(answer.argmax(axis=-1) == truth)
    with np.errstate(invalid="ignore"):
        return {"accuracy": right / count, "count": count}


def noise_single(logits: Logits, p: int, triples, rng) -> tuple[np.ndarray, np.ndarray]:
    """Every answer with one wrong label z_j: right (B, n, n), and clean (B, n), without any.

    right [j, k]: the query after k examples when label j is wrong, = clean for k <= j. triples
    (B, n, 3)."""
    triples = integers(triples, "triples", 0, p - 1)
    B, n, _ = triples.shape
    truth = triples[..., 2]
    noisy = np.repeat(triples[:, None], n + 1, axis=1)  # row j < n has label j wrong, row n none
    j = np.arange(n)
    error = rng.integers(1, p, size=(B, n))
    noisy[:, j, j, 2] = (truth + error) % p
    answer = logits(noisy.reshape(-1, n, 3)).argmax(axis=-1)
    right = answer.reshape(B, n + 1, n) == truth[:, None]
    return right[:, :n], right[:, n]
