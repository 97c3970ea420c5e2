"""Corrupted labels: which training examples get a wrong answer, and which one.

For one seed the corrupted sets are nested: a larger fraction corrupts more examples and leaves the
earlier labels alone."""

import numpy as np

from ..engine.errors import require_known
from .modular import ModularTask, TaskError

RULES = ("uniform", "strict", "symmetric", "subtraction")


def corrupt(
    task: ModularTask, numbers, fraction: float, rng, rule="uniform"
) -> tuple[np.ndarray, np.ndarray]:
    """(labels as given, corrupted?) of training inputs with these numbers, in their random order.

    uniform      the first int(xi n) examples draw a label from all p classes, the true one
                 included, so that the share of wrong labels is xi (1 - 1/p)
                 (To grok or not to grok, and its code)
    strict       the same examples draw one of the p - 1 wrong labels
    symmetric    uniform, but (a, b) and (b, a) are corrupted together and get the same label
    subtraction  the same examples get the answer of another rule, n_1 - n_2
    Raises TaskError for a fraction outside [0, 1] or an unknown rule.

    >>> from tinygrok.tasks.modular import addition
    >>> labels, corrupted = corrupt(addition(5), np.arange(8), 0.5, np.random.default_rng(0))
    >>> labels  # of 0 + 0, 0 + 1, ..., 1 + 2: true ones from the fifth on
    array([4, 3, 2, 1, 4, 1, 2, 3])
    >>> int(corrupted.sum())
    4
    """
    if not 0 <= fraction <= 1:
        raise TaskError(f"the corrupted fraction must lie between 0 and 1, not {fraction}")
    require_known(rule, RULES, "corruption rule", TaskError)
    n = len(numbers)
    inputs = task.inputs(numbers)
    true = task.labels(inputs)
    rank = np.arange(n)  # the int(xi n) examples of lowest rank are corrupted
    wrong = rng.integers(0, task.p, n)
    if rule == "strict":
        distance = 1 + rng.integers(0, task.p - 1, n)
        wrong = (true + distance) % task.p
    elif rule == "symmetric":
        rank = _first_of_pair(inputs, task.p)
        wrong = wrong[rank]
    elif rule == "subtraction":
        wrong = (inputs[0] - inputs[1]) % task.p
    count = int(fraction * n)
    limit = np.sort(rank)[count] if count < n else n  # count, unless it would part a pair
    corrupted = rank < limit
    return np.where(corrupted, wrong, true), corrupted


def _first_of_pair(inputs: np.ndarray, p: int) -> np.ndarray:
    """(B,) the place of the first input that is the same as each of inputs (S, B), in any order."""
    in_order = tuple(np.sort(inputs, axis=0))
    numbers = np.ravel_multi_index(in_order, (p,) * len(inputs))
    _, first, group = np.unique(numbers, return_index=True, return_inverse=True)
    return first[group]
