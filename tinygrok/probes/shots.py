"""Which examples of its context a model uses: grids over all queries.

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


def _loss(logits: np.ndarray, target: np.ndarray) -> np.ndarray:
    """-log softmax(logits)[target] over the last axis."""
    top = logits.max(axis=-1, keepdims=True)
    total = np.exp(logits - top).sum(axis=-1)
    log_total = np.log(total) + top[..., 0]
    right = np.take_along_axis(logits, target[..., None], axis=-1)
    return log_total - right[..., 0]
