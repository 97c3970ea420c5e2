"""Rows of inputs by rule for the in-context task: what they leave ratio matching to answer.

In rows of inputs drawn freely most queries are multiples of an example, and matching them leaves
little to be learnt. Here a share of the rows asks for more:

    plain            inputs drawn freely, as in the paper
    direction-free   no input is a multiple of another, none is (0, 0): ratio matching never has an
                     answer. A direction is drawn for every input, all of them different and all
                     equally likely, then one of its inputs
    axis             direction-free, and among the first 4 inputs are (u, 0) and (0, v), at places
                     drawn at random: what follows is answered by x/u z(u, 0) + y/v z(0, v)

There are p + 1 directions y/x. Unless a = b = 0, z is 0 in exactly one of them, so that a learner
who has seen p of them without a 0 knows the last answer: draw fewer shots than that.
"""

from dataclasses import dataclass

import numpy as np

from .in_context import InContextData
from .modular import TaskError, directions, pair_numbers
from .shares import MovingShares

RULES = ("plain", "direction-free", "axis")
EARLY = 4  # shots among which the two inputs on the axes stand


class Lines:
    """The inputs of a pool (m, 2) by their direction y/x (p of (0, v)); (0, 0) is left out.

    >>> lines = Lines(5, np.array([[0, 0], [1, 1], [2, 0], [0, 3], [3, 3], [4, 0]]))
    >>> lines.directions.tolist()
    [0, 1, 5]
    >>> lines.draw(2, 3, np.random.default_rng(0), "direction-free").tolist()
    [[[0, 3], [1, 1], [2, 0]], [[2, 0], [1, 1], [0, 3]]]
    """

    def __init__(self, p: int, pool: np.ndarray):
        pool = pool[pool.any(axis=1)]
        line = directions(p)[pair_numbers(pool, p)]
        self._inputs = pool[np.argsort(line, kind="stable")]
        self.directions, self._counts = np.unique(line, return_counts=True)
        self._ends = np.cumsum(self._counts)
        self._on_axis = np.isin(self.directions, [0, p])

    def rules(self, shots: int) -> tuple[str, ...]:
        """The rules by which the pool has rows of so many shots."""
        if len(self.directions) < shots:
            return RULES[:1]
        return RULES if self._on_axis.sum() == 2 else RULES[:2]

    def draw(self, rows: int, shots: int, rng: np.random.Generator, rule: str) -> np.ndarray:
        """(rows, shots, 2) pairs of different directions, by the rule direction-free or axis."""
        rank = rng.random((rows, len(self.directions)))
        if rule == "axis":
            rank -= self._on_axis  # these two come first
        chosen = np.argsort(rank, axis=1)[:, :shots]
        if rule == "axis":
            chosen[:, :EARLY] = rng.permuted(chosen[:, :EARLY], axis=1)
        return self._inputs[self._ends[chosen] - 1 - rng.integers(self._counts[chosen])]


@dataclass(kw_only=True)
class MixedRows(InContextData):
    """A data set whose training rows are of several rules, with shares that move.

    shares   of RULES. Of plain rows alone it draws what InContextData draws, bit for bit

    Raises TaskError where the train inputs have no row of a rule that has a share.

    >>> plain = InContextData.make(7, shots=4, tasks=8, alpha=0.8, rng=np.random.default_rng(0))
    >>> shares = MovingShares(RULES, {"axis": 1.0}, {"direction-free": 1.0}, (0, 10))
    >>> data = MixedRows(**vars(plain), shares=shares)
    >>> data.batch(8, np.random.default_rng(0), step=0)[0].reshape(4, 3).tolist()
    [[6, 6, 3], [4, 3, 1], [0, 4, 4], [5, 0, 1]]
    """

    shares: MovingShares

    def __post_init__(self):
        super().__post_init__()
        self.lines = Lines(self.p, self.train_pool)
        for rule in self.shares.used:
            if rule not in self.lines.rules(self.shots):
                none = f"the train inputs have no {rule} row of {self.shots} shots"
                raise TaskError(f"{none}: choose fewer shots or a larger alpha")

    def train_rows(self, rows: int, rng: np.random.Generator, step: float) -> np.ndarray:
        """(rows, shots, 2) train inputs of the batch of a step."""
        pairs = super().train_rows(rows, rng, step)
        rules = np.repeat(RULES, rng.multinomial(rows, self.shares(step)))
        for rule in np.unique(rules[rules != "plain"]):
            chosen = rules == rule
            pairs[chosen] = self.lines.draw(chosen.sum(), self.shots, rng, rule)
        return pairs

    def sets(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """The four of InContextData; then ood_direction_free, ood_axis: held-out tasks on rows of
        train inputs by these rules, where there are any."""
        result = super().sets(rng)
        rows = len(result["ood_train"]) // len(self.ood_tasks)
        for rule in self.lines.rules(self.shots)[1:]:
            pairs = self.lines.draw(rows, self.shots, rng, rule)
            result[f"ood_{rule.replace('-', '_')}"] = self.sequences(self.ood_tasks, pairs)
        return result
