"""Rows of inputs by rule for the in-context task: what they leave ratio matching to answer.

In rows of inputs drawn freely most queries are multiples of an example, and matching them leaves
little to be learnt. Here a share of the rows asks for more, or for one thing at a time:

    plain            inputs drawn freely, as in the paper
    direction-free   no input is a multiple of another, none is (0, 0): ratio matching never has an
                     answer. A direction is drawn for every input, all of them different and all
                     equally likely, then one of its inputs
    line             all inputs of one direction: ratio matching and nothing else
    two-lines        inputs of two directions: which example to match has to be found
    axis             among the first 4 inputs are (u, 0) and (0, v), at places drawn at random; the
                     others are off the axes: x/u z(u, 0) + y/v z(0, v) answers them
    sums             (x, 0), (0, y), (x, y) in turn, of inputs off the axes for which the pool has
                     all three
    steps            axis rows that show such a sum in steps: before (x, y) also (x, 0) and (0, y),
                     where the pool has them, each with the same probability (among the first 4
                     inputs the order is lost)

In rows of steps few sums have both their steps before them and no match: one of twelve queries at
p = 11 and alpha 0.75, three in rows of sums.

Direction-free rows hold no input twice, plain ones with --repeats alone; of the other rules many
do.

There are p + 1 directions y/x. Unless b = 0, z/x = a + b y/x is another in each of them, so that a
learner can exclude answers, the more the more directions it has seen: draw far fewer shots than p.
"""

from dataclasses import dataclass

import numpy as np
from _moving_shares import MovingShares, moved

from tinygrok.tasks.in_context import InContextData
from tinygrok.tasks.modular import TaskError, directions, pair_numbers

RULES = ("plain", "direction-free", "line", "two-lines", "axis", "sums", "steps")
MEASURED = tuple(rule for rule in RULES if rule not in ("plain", "sums"))  # beside plain rows
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
        self._in_pool = np.zeros((p, p), dtype=bool)
        self._in_pool[tuple(pool.T)] = True
        x, y = self._inputs.T
        self._both_steps = self._inputs[(x * y > 0) & self._in_pool[x, 0] & self._in_pool[0, y]]

    def rules(self, shots: int) -> list[str]:
        """The rules by which the pool has rows of so many shots."""
        count = len(self.directions)
        both_axes = self._in_pool[1:, 0].any() and self._in_pool[0, 1:].any() and count > 2
        has = {
            "plain": True,
            "direction-free": count >= shots,
            "line": count > 0,
            "two-lines": count > 1,
            "axis": both_axes,
            "sums": len(self._both_steps) > 0,
            "steps": both_axes,
        }
        return [rule for rule in RULES if has[rule]]

    def draw(
        self, rows: int, shots: int, rng: np.random.Generator, rule: str, shown: float = 1.0
    ) -> np.ndarray:
        """(rows, shots, 2) inputs of the pool, by any rule but plain; `shown` is the probability
        of a step."""
        count = len(self.directions)
        if rule == "line":
            one = rng.integers(count, size=(rows, 1))
            return self._of(np.broadcast_to(one, (rows, shots)), rng)
        if rule in ("direction-free", "two-lines"):
            order = np.argsort(rng.random((rows, count)), axis=1)
            if rule == "two-lines":
                order = np.take_along_axis(order, rng.integers(2, size=(rows, shots)), axis=1)
            return self._of(order[:, :shots], rng)
        if rule == "sums":
            return self._steps_and_sums(rows, shots, rng)
        return self._sums(rows, shots, rng, shown if rule == "steps" else 0.0)

    def _of(self, chosen: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Inputs (..., 2) in directions of the numbers chosen (...)."""
        return self._inputs[self._ends[chosen] - 1 - rng.integers(self._counts[chosen])]

    def _steps_and_sums(self, rows: int, shots: int, rng: np.random.Generator) -> np.ndarray:
        """Rows of the rule sums."""
        chosen = rng.integers(len(self._both_steps), size=(rows, -(-shots // 3)))
        x, y = np.moveaxis(self._both_steps[chosen], -1, 0)
        zero = np.zeros_like(x)
        inputs = np.stack([x, zero, zero, y, x, y], axis=-1)
        return inputs.reshape(rows, -1, 2)[:, :shots]

    def _sums(self, rows: int, shots: int, rng: np.random.Generator, shown: float) -> np.ndarray:
        """Rows of the rules axis and steps."""
        count = len(self.directions)
        axes = self._of(np.tile([0, count - 1], (rows, 1)), rng)
        queries = self._of(rng.integers(1, count - 1, size=(rows, shots)), rng)
        steps = queries[:, :, None] * np.eye(2, dtype=int)  # (x, 0), (0, y)
        kept = self._in_pool[steps[..., 0], steps[..., 1]]
        kept &= rng.random(kept.shape) < shown
        inputs = np.concatenate([steps, queries[:, :, None]], axis=2).reshape(rows, -1, 2)
        left_out = ~np.pad(kept, ((0, 0), (0, 0), (0, 1)), constant_values=True)
        places = np.argsort(left_out.reshape(rows, -1), axis=1, kind="stable")[:, : shots - 2]
        later = np.take_along_axis(inputs, places[..., None], axis=1)
        drawn = np.concatenate([axes, later], axis=1)
        order = np.tile(np.arange(shots), (rows, 1))
        order[:, :EARLY] = rng.permuted(order[:, :EARLY], axis=1)
        return np.take_along_axis(drawn, order[..., None], axis=1)


@dataclass(kw_only=True)
class MixedRows(InContextData):
    """A data set whose training rows are of several rules, with shares that move.

    shares   of RULES. Of plain rows alone a batch of a fresh generator is that of InContextData
    fade     training steps over which the probability of a step in a row falls from 1 to 0

    Raises TaskError where the train inputs have no row of a rule that has a share.

    >>> plain = InContextData.make(7, shots=4, tasks=8, alpha=0.8, rng=np.random.default_rng(0))
    >>> shares = MovingShares(RULES, {"axis": 1.0}, {"direction-free": 1.0}, (0, 10))
    >>> data = MixedRows(**vars(plain), shares=shares)
    >>> data.batch(8, np.random.default_rng(0), step=0)[0].reshape(4, 3).tolist()
    [[0, 2, 2], [2, 0, 6], [5, 4, 5], [6, 5, 2]]
    """

    shares: MovingShares
    fade: tuple[int, int] = (0, 1)

    def __post_init__(self):
        super().__post_init__()
        self.lines = Lines(self.p, self.train_pool)
        first, last = self.fade
        if first >= last:
            raise TaskError(f"steps fade from a step to a later one, not from {first} to {last}")
        for rule in self.shares.used:
            if rule not in self.lines.rules(self.shots):
                none = f"the train inputs have no {rule} row of {self.shots} shots"
                raise TaskError(f"{none}: choose fewer shots or a larger alpha")

    def train_rows(self, rows: int, rng: np.random.Generator, step: float) -> np.ndarray:
        """(rows, shots, 2) train inputs of the batch of a step."""
        pairs = super().train_rows(rows, rng, step)
        first, last = self.fade
        shown = moved(step, last, first)
        rules = np.repeat(RULES, rng.multinomial(rows, self.shares(step)))
        for rule in np.unique(rules[rules != "plain"]):
            chosen = rules == rule
            pairs[chosen] = self.lines.draw(chosen.sum(), self.shots, rng, rule, shown)
        return pairs

    def sets(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """The four of InContextData; then, unless all training rows are plain, ood_direction_free,
        ood_line, ood_two_lines, ood_axis, ood_steps: held-out tasks on train inputs by these rules,
        if any."""
        result = super().sets(rng)
        if self.shares.used == ["plain"]:
            return result
        rows = len(result["ood_train"]) // len(self.ood_tasks)
        possible = self.lines.rules(self.shots)
        for rule in [rule for rule in MEASURED if rule in possible]:
            pairs = self.lines.draw(rows, self.shots, rng, rule)
            result[f"ood_{rule.replace('-', '_')}"] = self.sequences(self.ood_tasks, pairs)
        return result
