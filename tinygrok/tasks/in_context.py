"""In-context modular maps: sequences x1 y1 z1 x2 y2 z2 ... of one map z = (a x + b y) mod p.

The task (a, b) is never shown. Tasks are rows (a, b); inputs are pairs (x, y); a sequence of
`shots` pairs has 3 shots tokens, number k being token k.
Source: He, Doshi, Das, Gromov, Learning to grok, arXiv 2406.02550.
"""

import math
from dataclasses import dataclass

import numpy as np

from ..engine.border import integer, integers
from .modular import TaskError, all_pairs, inverses, modulus, pair_numbers, require_prime

MAX_OOD = 256  # held-out tasks that are measured (authors' code)
QUESTIONS = 14  # rows of inputs, at least, in a measured set


def random_tasks(p: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` distinct tasks (a, b), zeros allowed, uniformly from Z_p^2; shape (count, 2)."""
    pairs = all_pairs(p)
    if not 1 <= count <= len(pairs):
        raise TaskError(f"there are {len(pairs)} tasks mod {p}, not {count}")
    return pairs[rng.permutation(len(pairs))[:count]]


def rectangle_tasks(p: int, base: int, rng: np.random.Generator, restarts: int = 200) -> np.ndarray:
    """4 base tasks in rectangles: for every base task (a, b) also (a, v), (u, b), (u, v), all new.

    Shape (4 base, 2): the base tasks, then three for each. u avoids a and b, v avoids a, b and u,
    as in the authors' code. There a rejected draw is repeated without limit; here the free (u, v)
    are listed and one is drawn, and when there is none the whole selection starts again.
    Raises TaskError when `restarts` selections fail, or 4 base > p^2.
    """
    p = modulus(p)
    base = integer(base, "base tasks")
    if not 1 <= 4 * base <= p * p:
        raise TaskError(f"{base} rectangles need {4 * base} tasks, and there are {p * p} mod {p}")
    for _ in range(restarts):
        chosen = random_tasks(p, base, rng).tolist()
        taken = np.zeros((p, p), dtype=bool)
        taken[tuple(np.transpose(chosen))] = True
        for a, b in chosen[:base]:
            corners = _free_corners(taken, a, b)
            if len(corners) == 0:
                break
            u, v = corners[rng.integers(len(corners))].tolist()
            for task in ([a, v], [u, b], [u, v]):
                taken[tuple(task)] = True
                chosen.append(task)
        if len(chosen) == 4 * base:
            return np.array(chosen)
    raise TaskError(f"no {base} rectangles mod {p} in {restarts} attempts: choose fewer")


def _free_corners(taken: np.ndarray, a: int, b: int) -> np.ndarray:
    """All (u, v), (n, 2), that complete a rectangle on (a, b) with three tasks not taken (p, p)."""
    n = np.arange(len(taken))
    allowed = (n != a) & (n != b)
    u_free = allowed & ~taken[:, b]
    v_free = allowed & ~taken[a]
    free = u_free[:, None] & v_free & ~taken
    np.fill_diagonal(free, False)  # u != v
    return np.argwhere(free)


@dataclass
class InContextData:
    """Pre-training tasks, held-out tasks, and the split of the inputs that all tasks share.

    id_tasks, ood_tasks     (n, 2)
    train_pool, test_pool   (m, 2)
    replace                 whether a row may hold the same pair twice (the paper: yes; without,
                            copying an answer is impossible)
    tasks_per_step          pre-training tasks in a batch, drawn anew for each; None: all of them,
                            or if the batch is smaller one for every sequence

    >>> data = InContextData.make(7, shots=3, tasks=8, alpha=0.6, rng=np.random.default_rng(0))
    >>> data.sequences(np.array([[2, 3]]), np.array([[[1, 1], [4, 0], [0, 6]]]))
    array([[1, 1, 5, 4, 0, 1, 0, 6, 4]])
    >>> data.batch(32, np.random.default_rng(0)).shape  # 4 rows of inputs, each for 8 tasks
    (32, 9)
    """

    p: int
    shots: int
    id_tasks: np.ndarray
    ood_tasks: np.ndarray
    train_pool: np.ndarray
    test_pool: np.ndarray
    replace: bool = True
    tasks_per_step: int | None = None

    def __post_init__(self):
        self.p = require_prime(self.p, "the in-context task")
        self.shots = integer(self.shots, "shots", 1)
        for name in ("id_tasks", "ood_tasks", "train_pool", "test_pool"):
            setattr(self, name, integers(getattr(self, name), name, 0, self.p - 1))

    @classmethod
    def make(
        cls, p: int, shots: int, tasks: int, alpha: float, rng, rule="rectangle", replace=True
    ):
        """Draw tasks and split the p^2 inputs: round(alpha p^2) to train.

        rule "rectangle" (4 to a base task) or "random". Raises TaskError for a composite p, an
        impossible number of tasks, or a pool too small for a row."""
        p = require_prime(p, "the in-context task")
        if rule not in ("rectangle", "random"):
            raise TaskError(f"unknown selection rule {rule!r}: choose rectangle or random")
        if rule == "random":
            chosen = random_tasks(p, tasks, rng)
        elif tasks % 4:
            raise TaskError(f"the rectangle rule makes tasks by fours, not {tasks}")
        else:
            chosen = rectangle_tasks(p, tasks // 4, rng)

        pairs = all_pairs(p)
        held_out = np.setdiff1d(np.arange(p * p), pair_numbers(chosen, p))
        if len(held_out) == 0:
            raise TaskError(f"{tasks} tasks mod {p} leave none to hold out")
        ood_tasks = pairs[rng.permutation(held_out)[:MAX_OOD]]

        inputs = pairs[rng.permutation(p * p)]
        train = round(alpha * p * p)
        test = p * p - train
        needed = 1 if replace else shots
        if min(train, test) < needed:
            left = f"{train} train and {test} test inputs"
            raise TaskError(f"--alpha {alpha} leaves {left}, too few for {shots} shots")
        return cls(p, shots, chosen, ood_tasks, inputs[:train], inputs[train:], replace)

    def draw_pairs(self, pool: np.ndarray, rows: int, rng: np.random.Generator) -> np.ndarray:
        """(rows, shots, 2) pairs from a pool, uniformly."""
        if self.replace:
            return pool[rng.integers(len(pool), size=(rows, self.shots))]
        order = np.argsort(rng.random((rows, len(pool))), axis=1)
        return pool[order[:, : self.shots]]

    def sequences(self, tasks: np.ndarray, pairs: np.ndarray) -> np.ndarray:
        """Tokens (tasks rows, 3 shots): every task gets the same rows of pairs (rows, shots, 2).

        Task-major, as the paper's batches."""
        tasks = integers(tasks, "tasks", 0, self.p - 1)
        pairs = integers(pairs, "pairs", 0, self.p - 1)
        z = np.einsum("tc,rsc->trs", tasks, pairs) % self.p
        xy = np.broadcast_to(pairs, (len(tasks), *pairs.shape))
        triples = np.concatenate([xy, z[..., None]], axis=-1)
        return triples.reshape(len(tasks) * len(pairs), -1)

    @property
    def positions(self) -> np.ndarray:
        """Input positions that carry loss: every y, for the z that follows."""
        return np.arange(1, 3 * self.shots, 3)

    def train_rows(self, rows: int, rng: np.random.Generator, step: float) -> np.ndarray:
        """(rows, shots, 2) train inputs of the batch of a step."""
        return self.draw_pairs(self.train_pool, rows, rng)

    def batch(self, count: int, rng: np.random.Generator, step: float = 1) -> np.ndarray:
        """A training batch of `count` sequences: its tasks all get the same train inputs.

        Raises TaskError unless count is a multiple of their number."""
        tasks = self.id_tasks
        each = min(self.tasks_per_step or max(count, 1), len(tasks))
        rows, left = divmod(count, each)
        if left or rows < 1:
            raise TaskError(f"a batch of {count} sequences is no multiple of its {each} tasks")
        if each < len(tasks):
            tasks = tasks[rng.permutation(len(tasks))[:each]]
        return self.sequences(tasks, self.train_rows(rows, rng, step))

    def sets(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """The four sets that are measured: id_train, id_test, ood_train, ood_test.

        By tasks and inputs; 500 sequences or more in each, all its tasks with the same inputs."""
        result = {}
        for which, tasks in (("id", self.id_tasks), ("ood", self.ood_tasks)):
            rows = max(QUESTIONS, math.ceil(500 / len(tasks)))
            for pool, pairs in (("train", self.train_pool), ("test", self.test_pool)):
                drawn = self.draw_pairs(pairs, rows, rng)
                result[f"{which}_{pool}"] = self.sequences(tasks, drawn)
        return result


def phase(id_train: float, id_test: float, ood_train: float, ood_test: float, high=0.75) -> str:
    """The paper's four phases from last-shot accuracies; `high` is our threshold (it states none).

    >>> phase(id_train=1.0, id_test=0.97, ood_train=0.1, ood_test=0.1)
    'i.d. generalization'
    """
    if id_train < high:
        return "untrained"
    if ood_train < high:
        return "i.d. generalization" if id_test >= high else "i.d. memorization"
    return "o.o.d. generalization" if min(id_test, ood_test) >= high else "o.o.d. memorization"


# -- reference solvers: (p, X (R, k, n), Z (R, k), queries (R, n)) -> (answers (R,), known? (R,)) --


Answers = tuple[np.ndarray, np.ndarray]


def _residues(p: int, *arrays) -> tuple:
    """p, and examples and queries mod p."""
    p = modulus(p)
    return p, *(integers(x, "examples and queries") % p for x in arrays)


def ratio_matching(p: int, X: np.ndarray, Z: np.ndarray, queries: np.ndarray) -> Answers:
    """If the query is c times an example, answer c z: one division, one multiplication.

    Two vectors are parallel when x_i q_j = x_j q_i for all i, j; c comes from the first coordinate
    where x_i != 0. Query 0: answer 0."""
    p, X, Z, queries = _residues(p, X, Z, queries)
    if not X.shape[1]:
        return np.zeros(len(X), int), np.zeros(len(X), bool)
    products = X[:, :, :, None] * queries[:, None, None, :]  # x_i q_j (R, k, n, n)
    cross = products - products.swapaxes(-1, -2)
    parallel = (cross % p == 0).all(axis=(-1, -2))
    match = parallel & X.any(axis=-1)
    zero = ~queries.any(axis=-1)

    row = np.arange(len(X))
    example = match.argmax(axis=1)  # the first that matches
    x = X[row, example]
    coordinate = (x != 0).argmax(axis=-1)
    c = queries[row, coordinate] * inverses(p)[x[row, coordinate]]
    answers = np.where(zero, 0, c * Z[row, example]) % p
    return answers, match.any(axis=1) | zero


def modular_regression(p: int, X: np.ndarray, Z: np.ndarray, queries: np.ndarray) -> Answers:
    """Gaussian elimination of [X | Z] over GF(p), any number of variables.

    The query is answered when it lies in the span of the examples, as the same combination of their
    answers: what reduces [q | 0] to [0 | -answer]."""
    p, X, Z, queries = _residues(p, X, Z, queries)
    inverse = inverses(p)
    rows = np.concatenate([X, Z[..., None]], axis=-1)  # (R, k, n + 1)
    query = np.pad(queries, ((0, 0), (0, 1)))
    used = np.zeros(rows.shape[:2], dtype=bool)
    system = np.arange(len(rows))
    columns = X.shape[-1] if X.shape[1] else 0
    for column in range(columns):
        candidates = (rows[:, :, column] != 0) & ~used
        pivot = candidates.argmax(axis=1)
        found = candidates[system, pivot]
        used[system, pivot] |= found

        line = rows[system, pivot]  # scaled to 1 in this column; 0 where there is no pivot
        scale = inverse[line[:, column]]
        line = line * scale[:, None] % p
        line[~found] = 0

        factor = rows[:, :, column].copy()
        factor[system, pivot] = 0
        rows = (rows - factor[:, :, None] * line[:, None, :]) % p
        query = (query - query[:, column, None] * line) % p
    spanned = (query[:, :-1] == 0).all(axis=1)
    return -query[:, -1] % p, spanned


def retrieval(p: int, X: np.ndarray, Z: np.ndarray, queries: np.ndarray, tasks) -> Answers:
    """A learner that knows its pre-training tasks only, tasks (T, n).

    Those that agree with most examples vote on the query."""
    p, X, Z, queries, tasks = _residues(p, X, Z, queries, tasks)
    right = X @ tasks.T % p == Z[..., None]  # (R, k, T)
    agreements = right.sum(axis=1)
    best = agreements == agreements.max(axis=1, keepdims=True)
    answers = queries @ tasks.T % p  # (R, T)
    votes = [(best & (answers == c)).sum(axis=1) for c in range(p)]
    return np.argmax(votes, axis=0), np.ones(len(X), dtype=bool)


def solver_accuracy(p: int, answers: np.ndarray, known: np.ndarray, truth: np.ndarray) -> float:
    """Mean accuracy when an unknown answer is a uniform guess, right with probability 1/p."""
    return float(np.where(known, answers == truth, 1 / p).mean())
