"""Which examples of its context a model uses: grids over all queries, whole lines, wrong labels.

A model is asked through `logits`: triples (B, n, 3) of numbers (x, y, z) -> (B, n, V >= p), at the
y of every triple for the z that follows; the last z is not read. Queries are all pairs (x, y),
number x p + y."""

from collections.abc import Callable

import numpy as np

from ..engine.border import integers
from ..tasks.modular import all_pairs, directions, pair_numbers

Logits = Callable[[np.ndarray], np.ndarray]


def covered(p: int, context: np.ndarray) -> np.ndarray:
    """(p^2,) the ratio-matching set of the context (k, 2): queries c (x_i, y_i), c in Z_p."""
    lines = directions(p)
    on_lines = np.isin(lines, lines[pair_numbers(context, p)])
    zero = lines < 0
    return on_lines | (zero & (len(context) > 0))


def spanned(p: int, context: np.ndarray) -> np.ndarray:
    """(p^2,) the span of the context (k, 2) over GF(p): all, once two pairs are independent."""
    lines = directions(p)
    seen = lines[pair_numbers(context, p)]
    rank_two = len(np.unique(seen[seen >= 0])) > 1
    return np.ones(len(lines), bool) if rank_two else covered(p, context)


def grid(logits: Logits, p: int, task: np.ndarray, context: np.ndarray) -> dict[str, np.ndarray]:
    """Ask all p^2 queries after the same context (k, 2) of a task (a, b).

    -> correct (p^2,), loss (p^2,), prediction (p^2,), logits (p^2, V)
    """
    k = len(context)
    pairs = all_pairs(p)
    triples = np.empty((len(pairs), k + 1, 3), dtype=int)
    triples[:, :k, :2] = integers(context, "context", 0, p - 1)
    triples[:, k, :2] = pairs
    triples[..., 2] = triples[..., :2] @ integers(task, "the task", 0, p - 1) % p
    truth = triples[:, -1, 2]
    answer = logits(triples)[:, -1]
    prediction = answer.argmax(axis=-1)
    return {
        "correct": prediction == truth,
        "loss": _loss(answer, truth),
        "prediction": prediction,
        "logits": answer,
    }


def classes(p: int, context: np.ndarray) -> dict[str, np.ndarray]:
    """Masks (p^2,) of the queries by what their answer needs:

    repeat      the query stands in the context (k, 2): copying is enough
    multiple    another multiple of an example: ratio matching
    spanned     a combination of two examples, but of no single one: modular regression
    unspanned   cannot be known
    """
    ratio = covered(p, context)
    repeat = np.isin(np.arange(len(ratio)), pair_numbers(context, p))
    span = spanned(p, context)
    return {
        "repeat": repeat,
        "multiple": ratio & ~repeat,
        "spanned": span & ~ratio,
        "unspanned": ~span,
    }


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
    """Accuracy and loss after k examples of which m, at random places, have a wrong label.

    The label is z + e, e uniform in 1..p-1; targets stay clean. triples (B, n, 3), clean ->
    accuracy, loss, count (n, n), row k = 0..n-1 examples before the query, column m = 0..k wrong
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
    loss = total(_loss(answer, truth))
    with np.errstate(invalid="ignore"):
        return {"accuracy": right / count, "loss": loss / count, "count": count}


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


def _loss(logits: np.ndarray, target: np.ndarray) -> np.ndarray:
    """-log softmax(logits)[target] over the last axis."""
    top = logits.max(axis=-1, keepdims=True)
    total = np.exp(logits - top).sum(axis=-1)
    log_total = np.log(total) + top[..., 0]
    right = np.take_along_axis(logits, target[..., None], axis=-1)
    return log_total - right[..., 0]
