"""In-context modular maps: sequences x1 y1 z1 x2 y2 z2 ... with z = (a x + b y) mod p, the task (a,
b) never shown.

Tasks are rows (a, b); inputs are pairs (x, y); a sequence of `shots` pairs has 3 shots tokens,
number k being token k.
Source: He, Doshi, Das, Gromov, Learning to grok, arXiv 2406.02550.
"""

import math
from dataclasses import dataclass

import numpy as np

from .modular import TaskError, all_pairs, inverses, require_prime

MAX_OOD = 256  # held-out tasks that are measured (authors' code)
QUESTIONS = 14  # rows of inputs, at least, in a measured set


def random_tasks(p: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` distinct tasks (a, b), zeros allowed, uniformly from Z_p^2; shape (count, 2)."""
    if not 1 <= count <= p * p:
        raise TaskError(f"there are {p * p} tasks mod {p}, not {count}")
    return all_pairs(p)[rng.permutation(p * p)[:count]]


def rectangle_tasks(p: int, base: int, rng: np.random.Generator, restarts: int = 200) -> np.ndarray:
    """4 base tasks in rectangles: for every base task (a, b) also (a, v), (u, b), (u, v), all new;
    shape (4 base, 2).

    u avoids a and b, v avoids a, b and u, as in the authors' code. There a rejected draw is
    repeated without limit; here the free (u, v) are listed and one is drawn, and when there is none
    the whole selection starts again.
    Raises TaskError when `restarts` selections fail, or 4 base > p^2.
    """
    if not 1 <= 4 * base <= p * p:
        raise TaskError(f"{base} rectangles need {4 * base} tasks, and there are {p * p} mod {p}")
    u, v = np.meshgrid(np.arange(p), np.arange(p), indexing="ij")
    for _ in range(restarts):
        chosen = random_tasks(p, base, rng).tolist()
        taken = np.zeros((p, p), dtype=bool)
        taken[tuple(np.transpose(chosen))] = True
        for a, b in chosen[:base]:
            free = (
                (u != v)
                & (u != a)
                & (u != b)
                & (v != a)
                & (v != b)
                & ~taken[a][None, :]
                & ~taken[:, b][:, None]
                & ~taken
            )
            options = np.argwhere(free)
            if len(options) == 0:
                break
            u1, v1 = options[rng.integers(len(options))]
            for task in ((a, v1), (u1, b), (u1, v1)):
                taken[task] = True
                chosen.append([int(i) for i in task])
        if len(chosen) == 4 * base:
            return np.array(chosen)
    raise TaskError(f"no {base} rectangles mod {p} in {restarts} attempts: choose fewer")


@dataclass
class InContextData:
    """Pre-training tasks, held-out tasks, and the split of the inputs that all tasks share.

    id_tasks, ood_tasks (n, 2);  train_pool, test_pool (m, 2)
    replace   whether a row may hold the same pair twice (the paper: yes; without, copying an answer is impossible)
    """

    p: int
    shots: int
    id_tasks: np.ndarray
    ood_tasks: np.ndarray
    train_pool: np.ndarray
    test_pool: np.ndarray
    replace: bool = True

    @classmethod
    def make(
        cls,
        p: int,
        shots: int,
        tasks: int,
        alpha: float,
        rng,
        rule: str = "rectangle",
        replace: bool = True,
    ):
        """Draw tasks ("rectangle", 4 to a base task, or "random") and split the p^2 inputs:
        round(alpha p^2) to train.

        Raises TaskError for a composite p, an impossible number of tasks, or a pool too small for a
        row."""
        require_prime(p, "the in-context task")
        if rule not in ("rectangle", "random"):
            raise TaskError(f"unknown selection rule {rule!r}: choose rectangle or random")
        if rule == "rectangle" and tasks % 4:
            raise TaskError(f"the rectangle rule makes tasks by fours, not {tasks}")
        chosen = (
            rectangle_tasks(p, tasks // 4, rng)
            if rule == "rectangle"
            else random_tasks(p, tasks, rng)
        )
        held_out = np.setdiff1d(np.arange(p * p), chosen @ [p, 1])
        if len(held_out) == 0:
            raise TaskError(f"{tasks} tasks mod {p} leave none to hold out")
        held_out = rng.permutation(held_out)[:MAX_OOD]
        order = all_pairs(p)[rng.permutation(p * p)]
        count = round(alpha * p * p)
        if min(count, p * p - count) < (1 if replace else shots):
            raise TaskError(
                f"--alpha {alpha} leaves {count} train and {p * p - count} test inputs, too few for {shots} shots"
            )
        return cls(p, shots, chosen, all_pairs(p)[held_out], order[:count], order[count:], replace)

    def draw_pairs(self, pool: np.ndarray, rows: int, rng: np.random.Generator) -> np.ndarray:
        """(rows, shots, 2) pairs from a pool, uniformly."""
        if self.replace:
            return pool[rng.integers(len(pool), size=(rows, self.shots))]
        return pool[np.argsort(rng.random((rows, len(pool))), axis=1)[:, : self.shots]]

    def sequences(self, tasks: np.ndarray, pairs: np.ndarray) -> np.ndarray:
        """Tokens (tasks rows, 3 shots): every task gets the same rows of pairs, task-major (the
        paper's batches)."""
        z = np.einsum("tc,rsc->trs", tasks, pairs) % self.p
        xy = np.broadcast_to(pairs, (len(tasks), *pairs.shape))
        return np.concatenate([xy, z[..., None]], axis=-1).reshape(len(tasks) * len(pairs), -1)

    @property
    def positions(self) -> np.ndarray:
        """Input positions that carry loss: every y, for the z that follows."""
        return np.arange(1, 3 * self.shots, 3)

    def batch(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """A training batch of `count` sequences: all pre-training tasks get the same train inputs.

        Raises TaskError unless count is a multiple of the number of tasks."""
        rows, left = divmod(count, len(self.id_tasks))
        if left or not rows:
            tasks = len(self.id_tasks)
            raise TaskError(
                f"a batch of {count} sequences is no multiple of the {tasks} tasks, "
                "which all see the same inputs"
            )
        return self.sequences(self.id_tasks, self.draw_pairs(self.train_pool, rows, rng))

    def sets(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """The four sets that are measured, by tasks and inputs: id_train, id_test, ood_train,
        ood_test; 500 sequences or more in each, all its tasks with the same inputs."""
        result = {}
        for which, tasks in (("id", self.id_tasks), ("ood", self.ood_tasks)):
            rows = max(QUESTIONS, math.ceil(500 / len(tasks)))
            for pool, pairs in (("train", self.train_pool), ("test", self.test_pool)):
                drawn = self.draw_pairs(pairs, rows, rng)
                result[f"{which}_{pool}"] = self.sequences(tasks, drawn)
        return result


def phase(
    id_train: float, id_test: float, ood_train: float, ood_test: float, high: float = 0.75
) -> str:
    """The paper's four phases from last-shot accuracies; `high` is our threshold (the paper states
    none)."""
    if id_train < high:
        return "untrained"
    if ood_train < high:
        return "i.d. generalization" if id_test >= high else "i.d. memorization"
    return "o.o.d. generalization" if min(id_test, ood_test) >= high else "o.o.d. memorization"


# -- reference solvers: (p, X (R, k, n), Z (R, k), queries (R, n)) -> (answers (R,), known? (R,)) --


def ratio_matching(
    p: int, X: np.ndarray, Z: np.ndarray, queries: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """If the query is c times an example, answer c z: one division, one multiplication. Query 0:
    answer 0.

    Two vectors are parallel when x_i q_j = x_j q_i for all i, j; c comes from the first coordinate
    where x_i != 0."""
    inverse = inverses(p)
    cross = (
        X[:, :, :, None] * queries[:, None, None, :] - X[:, :, None, :] * queries[:, None, :, None]
    )
    match = (cross % p == 0).all(axis=(-1, -2)) & X.any(axis=-1)
    zero = ~queries.any(axis=-1)
    if not X.shape[1]:
        return np.zeros(len(X), int), np.zeros(len(X), bool)
    at = np.arange(len(X)), match.argmax(axis=1)
    example = X[at]
    coordinate = (example != 0).argmax(axis=-1)[:, None]
    c = (
        np.take_along_axis(queries, coordinate, 1)[:, 0]
        * inverse[np.take_along_axis(example, coordinate, 1)[:, 0]]
    )
    return np.where(zero, 0, c * Z[at]) % p, match.any(axis=1) | zero


def modular_regression(
    p: int, X: np.ndarray, Z: np.ndarray, queries: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian elimination of [X | Z] over GF(p), any number of variables: the query is answered
    when it lies in the span of the examples, as the same combination of their answers."""
    inverse = inverses(p)
    rows = np.concatenate([X, Z[..., None]], axis=-1) % p  # (R, k, n + 1)
    query = np.concatenate([queries, np.zeros((len(queries), 1), queries.dtype)], axis=-1) % p
    used = np.zeros(rows.shape[:2], dtype=bool)
    everyone = np.arange(len(rows))
    for column in range(X.shape[-1] if X.shape[1] else 0):
        candidates = (rows[:, :, column] != 0) & ~used
        pivot = candidates.argmax(axis=1)
        found = candidates[everyone, pivot]
        used[everyone, pivot] |= found
        line = rows[everyone, pivot] * inverse[rows[everyone, pivot, column]][:, None] % p
        line[~found] = 0
        factor = rows[:, :, column].copy()
        factor[everyone, pivot] = 0
        rows = (rows - factor[:, :, None] * line[:, None, :]) % p
        query = (query - query[:, column, None] * line) % p
    return -query[:, -1] % p, (query[:, :-1] == 0).all(axis=1)


def retrieval(
    p: int, X: np.ndarray, Z: np.ndarray, queries: np.ndarray, tasks: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A learner that knows its pre-training tasks only: those that agree with most examples vote on
    the query."""
    agreements = ((X @ tasks.T % p) == Z[..., None]).sum(axis=1)  # (R, T)
    best = agreements == agreements.max(axis=1, keepdims=True)
    answers = queries @ tasks.T % p
    votes = np.stack([(best & (answers == c)).sum(axis=1) for c in range(p)], axis=1)
    return votes.argmax(axis=1), np.ones(len(X), dtype=bool)


def solver_accuracy(p: int, answers: np.ndarray, known: np.ndarray, truth: np.ndarray) -> float:
    """Mean accuracy when an unknown answer is a uniform guess, right with probability 1/p."""
    return float(np.where(known, answers == truth, 1 / p).mean())


def exact_accuracy(p: int, k: int) -> dict[str, float]:
    """Accuracies for uniform tasks and inputs with replacement, two variables, k examples.

    span     P(rank 2) = (1 - p^-k)(1 - p^(1-k))
    optimal  P2 + P1 [1/p + (1 - 1/p)/p] + P0 [1/p^2 + (1 - 1/p^2)/p],  P0 = p^-2k,  P1 = (p^k - 1)(p + 1)/p^2k
    ratio_coverage  c = p^-2 [k >= 1] + (1 - p^-2)(1 - (1 - (p-1)/p^2)^k);   ratio_matching = c + (1 - c)/p
    """
    p0, p1, p2 = (
        p ** (-2 * k),
        (p**k - 1) * (p + 1) / p ** (2 * k),
        (1 - p**-k) * (1 - p ** (1 - k)),
    )
    coverage = (k >= 1) / p**2 + (1 - p**-2) * (1 - (1 - (p - 1) / p**2) ** k)
    optimal = p2 + p1 * (1 / p + (1 - 1 / p) / p) + p0 * (1 / p**2 + (1 - 1 / p**2) / p)
    matching = coverage + (1 - coverage) / p
    return {"span": p2, "optimal": optimal, "ratio_coverage": coverage, "ratio_matching": matching}
