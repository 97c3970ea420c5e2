"""Training sequences as a mixture of families of generators, whose shares move.

One modulus (mixed_modulus) has two families:

    any     any a and c but those of the tests: the authors' draw, most of it of short period
    full    a and c of full period, none of them of the tests

From sequences of short period a network learns to look back by powers of two, and from there it
learns those that never repeat within the context; after that only `full` has something to teach.

Unseen moduli (mixed_moduli) have four. A network that shall predict mod m without having trained on
m must find m in the sequence. Drawn as in the paper (tasks/lcg.py, unseen_modulus), few training
moduli have a multiplier of full period, and most sequences repeat within the context, so that
copying by period answers them. Here every sequence is of a family that asks for more:

    wrap    x -> x + c, gcd(c, m) = 1: add, and wrap at m; exists for every m
    full    a from multipliers(m), gcd(c, m) = 1: of full period
    free    any a prime to m, any c, if no number repeats in the sequence
    paper   a and c from pools that all moduli share: the authors' draw

The differences of a sequence obey d -> a d, so they repeat with the order of a mod m. In `full` and
`free` this order is at most half the context: what is needed can be seen."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from _moving_shares import MovingShares

from tinygrok.engine.border import integer, integers
from tinygrok.tasks.lcg import (
    Grid,
    LcgData,
    draw_increments,
    fixed_modulus,
    hull_dobell_step,
    increments,
    multipliers,
    pair_grid,
)
from tinygrok.tasks.modular import TaskError

LARGEST_MIXED = 2**12  # modulus whose multipliers of small order are listed
FAMILIES = ("wrap", "full", "free", "paper")
FAMILIES_OF_ONE = ("any", "full")  # families of one modulus
TRIES = 10_000  # draws of `free` of which one at least must be a sequence without repeats


def of_small_order(m: int, largest: int) -> np.ndarray:
    """1 < a < m, prime to m, with a^r = 1 mod m for an r of at most `largest`.

    >>> of_small_order(16, 2).tolist()
    [7, 9, 15]
    """
    a = np.arange(2, m)
    power = a.copy()
    small = power == 1
    for _ in range(1, largest):
        power = power * a % m
        small |= power == 1
    return a[small]


def of_full_period(a: np.ndarray, m: int) -> np.ndarray:
    """Those of the multipliers a with which mod m every seed has the full period (Hull-Dobell)."""
    return a[(a - 1) % hull_dobell_step(m) == 0]


def units(m: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A number below m and prime to it for every modulus (n,), all equally likely."""
    c = rng.integers(1, m)
    wrong = np.flatnonzero(np.gcd(c, m) != 1)
    while len(wrong):
        c[wrong] = rng.integers(1, m[wrong])
        wrong = wrong[np.gcd(c[wrong], m[wrong]) != 1]
    return c


class Pairs:
    """Moduli with their multipliers, to be drawn: a modulus uniformly, then one of its own.

    multipliers   {m: (n_m,)}; moduli without any are left out"""

    def __init__(self, multipliers: Mapping[int, np.ndarray]):
        kept = {m: a for m, a in multipliers.items() if len(a)}
        self.moduli = np.array(list(kept), dtype=np.int64)
        self._counts = np.array([len(a) for a in kept.values()])
        self._ends = np.cumsum(self._counts)
        self._all = np.concatenate([*kept.values(), np.empty(0, dtype=np.int64)])

    def draw(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(moduli (n,), multipliers (n,))"""
        i = rng.integers(len(self.moduli), size=n)
        place = self._ends[i] - 1 - rng.integers(self._counts[i])
        return self.moduli[i], self._all[place]


@dataclass(kw_only=True)
class MixedLcg(LcgData):
    """A stream of training sequences of several families; tests with moduli that none of them uses.

    full, free    what the families of these names draw from
    shares        of FAMILIES

    >>> end = {"wrap": 0.2, "full": 0.4, "free": 0.4}
    >>> shares = MovingShares(FAMILIES, {"wrap": 1.0}, end, (300, 1000))
    >>> data = mixed_moduli(16, 40, 12, np.random.default_rng(0), [32, 27], shares)
    >>> list(data.tests), data.vocab
    (['32', '32, a = 1', '27', '27, a = 1'], 40)
    >>> data.shares(650).tolist()
    [0.6, 0.2, 0.2, 0.0]
    """

    full: Pairs
    free: Pairs
    shares: MovingShares

    def batch(self, count: int, rng: np.random.Generator, step: float = np.inf) -> np.ndarray:
        """Training tokens (count, length) of a step; of the last ones unless given."""
        counts = rng.multinomial(count, self.shares(step))
        draws = (self._wrap, self._full, self._free, super().batch)
        rows = [draw(n, rng) for draw, n in zip(draws, counts, strict=True) if n]
        return np.concatenate(rows)

    def _wrap(self, n: int, rng: np.random.Generator) -> np.ndarray:
        m = rng.choice(self.moduli, n)
        return self._numbers(m, np.ones_like(m), units(m, rng), rng)

    def _full(self, n: int, rng: np.random.Generator) -> np.ndarray:
        m, a = self.full.draw(n, rng)
        return self._numbers(m, a, units(m, rng), rng)

    def _free(self, n: int, rng: np.random.Generator) -> np.ndarray:
        found = np.empty((0, self.length), dtype=np.int64)
        while len(found) < n:
            found = np.concatenate([found, self.without_repeats(8 * n, rng)])
        return found[:n]

    def without_repeats(self, tries: int, rng: np.random.Generator) -> np.ndarray:
        """What is of the family `free` among so many draws: (at most tries, length)."""
        m, a = self.free.draw(tries, rng)
        x = self._numbers(m, a, rng.integers(0, m), rng)
        # A number decides all that follow: what repeats also repeats its last number.
        repeats = (x[:, :-1] == x[:, -1:]).any(axis=1)
        return x[~repeats]


def mixed_moduli(
    low: int, high: int, length: int, rng: np.random.Generator, held_out, shares: MovingShares
) -> MixedLcg:
    """Sequences of `length` numbers of all moduli from low to high but the test moduli held_out.

    Tests of every held-out modulus: full period (all multipliers), and a = 1; 16 increments each.
    The pools of the family `paper` are 128 multipliers and increments below `high`, or all.
    Raises TaskError for a test modulus outside low..high, or without multipliers of full period,
    and for a family with a share of which the moduli have no sequence."""
    low = integer(low, "the smallest modulus", 4, LARGEST_MIXED)
    high = integer(high, "the largest modulus", low, LARGEST_MIXED)
    length = integer(length, "numbers in a sequence", 4)
    held_out = integers(held_out, "test moduli", low, high).tolist()

    tests: dict[str, Grid] = {}
    for m in held_out:
        c = draw_increments(m, 16, rng, replace=True)
        a = np.array(multipliers(m))
        tests[str(m)] = pair_grid(m, a, c)
        tests[f"{m}, a = 1"] = (m, np.ones_like(c), c)
    moduli = np.setdiff1d(np.arange(low, high + 1), held_out)
    if not len(moduli):
        raise TaskError(f"the tests leave no modulus from {low} to {high} to train on")
    free = {}
    full = {}
    for m in moduli.tolist():
        free[m] = of_small_order(m, length // 2)
        full[m] = of_full_period(free[m], m)
    a, c = (rng.permutation(np.arange(1, high))[None, :128] for _ in range(2))
    data = MixedLcg(
        moduli, a, c, tests, length, high, full=Pairs(full), free=Pairs(free), shares=shares
    )
    if "full" in shares.used and not len(data.full.moduli):
        needed = f"multipliers of full period whose order is at most {length // 2}"
        raise TaskError(f"no training modulus has {needed}: leave out the family full")
    if "free" in shares.used and not len(data.without_repeats(TRIES, np.random.default_rng(0))):
        needed = f"{length} numbers without repeats"
        raise TaskError(f"no sequence of {needed} in {TRIES} draws: choose larger moduli")
    return data


# -- one modulus -----------------------------------------------------------------------------------


@dataclass(kw_only=True)
class MixedModulus(LcgData):
    """A stream of training sequences of one modulus, of FAMILIES_OF_ONE, and its tests.

    full_a, full_c    (n,) multipliers and increments of full period that no test has
    shares            of FAMILIES_OF_ONE

    >>> shares = MovingShares(FAMILIES_OF_ONE, {"any": 1.0}, {"full": 1.0}, (300, 600))
    >>> data = mixed_modulus(64, 8, np.random.default_rng(0), 8, shares)
    >>> data.batch(2, np.random.default_rng(0))
    array([[19, 22,  1, 20, 15, 50, 61, 48],
           [ 2, 43, 32, 49, 46, 39, 44, 13]])
    """

    full_a: np.ndarray
    full_c: np.ndarray
    shares: MovingShares

    def batch(self, count: int, rng: np.random.Generator, step: float = np.inf) -> np.ndarray:
        """Training tokens (count, length) of a step; of the last ones unless given."""
        of_any, of_full = rng.multinomial(count, self.shares(step))
        m = np.full(of_full, self.moduli[0])
        a = rng.choice(self.full_a, of_full)
        c = rng.choice(self.full_c, of_full)
        full = self._numbers(m, a, c, rng)
        return np.concatenate([super().batch(of_any, rng), full])


def mixed_modulus(
    m: int, length: int, rng: np.random.Generator, draws: int, shares: MovingShares
) -> MixedModulus:
    """Sequences of `length` numbers mod m; tests as those of fixed_modulus, `draws` of a and of c.

    Raises TaskError where the tests leave no multiplier, or no increment, of full period."""
    data = fixed_modulus(m, length, rng, draws)
    _, test_a, test_c = data.tests[str(m)]
    full_a = np.setdiff1d(multipliers(m), test_a)
    full_c = np.setdiff1d(increments(m), test_c)
    if not len(full_a) or not len(full_c):
        raise TaskError(f"the tests leave no a, or no c, of full period mod {m}: draw fewer")
    parts = (data.moduli, data.a, data.c, data.tests, length, data.vocab)
    return MixedModulus(*parts, full_a=full_a, full_c=full_c, shares=shares)
