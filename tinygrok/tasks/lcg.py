"""Linear congruential generators x_{t+1} = (a x_t + c) mod m: sequences, data sets, predictors.

Source: Tao, Doshi, Kalra, He, Barkeshli, (How) can transformers predict pseudo-random numbers?,
arXiv 2502.10390, and the authors' code (four experiments: fixed or unseen modulus, one token a
number or base-b digits)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..engine.border import INT64, integer, integers
from .modular import TaskError, modulus, prime_factors

LARGEST = 2**64  # modulus
LARGEST_LIST = 2**26  # modulus whose residues, or numbers as tokens, are listed
PAPER_TEST_MODULI = (2048, 1521, 1800, 1936, 2178, 2312, 2352)

# -- generators ------------------------------------------------------------------------------------


def _exact_type(m: np.ndarray) -> type:
    """uint64 where a x + c <= m (m - 1) fits, else Python's integers."""
    return np.uint64 if np.max(m, initial=0) <= 2**32 else object


def generate(m, a, c, x0, length: int) -> np.ndarray:
    """x_0, x_1, ..., x_{length-1}: integers that broadcast to (n,) -> (n, length), exact.

    Moduli up to 2^64; int64, or Python's integers (dtype object) where a number exceeds 2^63. By
    doubling: x_{t+r} = a_r x_t + c_r with a_{2r} = a_r^2, c_{2r} = a_r c_r + c_r (all mod m),
    a_1 = a, c_1 = c.

    >>> generate(7, 3, 1, 2, 5)
    array([2, 0, 1, 4, 6])
    """
    m = integers(m, "the modulus", 2, LARGEST)
    exact = _exact_type(m)
    given = (integers(v, "a, c and x_0", -LARGEST, LARGEST) for v in (a, c, x0))
    m, *columns = (v[..., None] for v in np.broadcast_arrays(m, *given))
    a, c, x0 = ((v % m).astype(exact) for v in columns)
    m = m.astype(exact)
    x = np.empty((*x0.shape[:-1], length), dtype=exact)
    x[..., :1] = x0
    r = 1
    while r < length:
        end = min(2 * r, length)
        x[..., r:end] = (a * x[..., : end - r] + c) % m
        c = (a * c + c) % m
        a = a * a % m
        r *= 2
    return integers(x, "numbers", 0, LARGEST)


def hull_dobell_step(m: int) -> int:
    """lambda(m): the product of the distinct primes of m, twice that if 4 | m.

    With gcd(c, m) = 1 every seed has the full period m exactly when lambda(m) divides a - 1 (Hull
    and Dobell 1962)."""
    m = modulus(m, LARGEST)
    radical = math.prod(prime_factors(m))
    return 2 * radical if m % 4 == 0 else radical


def multipliers(m: int) -> range:
    """A(m) = {k lambda + 1: k = 1, ..., floor(m/lambda) - 1}: the authors' of full period.

    Raises TaskError where it is empty: for square-free m (primes too) and for 4 times an odd
    square-free number."""
    m = modulus(m, LARGEST)
    step = hull_dobell_step(m)
    count = m // step - 1
    if count < 1:
        raise TaskError(
            f"mod {m} no multiplier but a = 1 has the full period (Hull-Dobell): "
            "choose a power of 2 from 8 on, for instance"
        )
    return range(step + 1, count * step + 2, step)


def draw_multipliers(m: int, count: int, rng: np.random.Generator, replace=False) -> np.ndarray:
    """`count` elements of A(m), distinct unless replace."""
    candidates = multipliers(m)
    if count > len(candidates) and not replace:
        raise TaskError(
            f"mod {m} there are {len(candidates)} multipliers of full period, fewer than {count}"
        )
    k = rng.choice(len(candidates), count, replace=replace)
    return integers([candidates[i] for i in k.tolist()], "multipliers", 1, LARGEST)


def increments(m: int) -> np.ndarray:
    """C(m) = {3 <= c < m: gcd(c, m) = 1}, the authors' candidates; m up to 2^26."""
    m = modulus(m, LARGEST_LIST)
    candidates = np.arange(3, m)
    return candidates[np.gcd(candidates, m) == 1]


def draw_increments(m: int, count: int, rng: np.random.Generator, replace=False) -> np.ndarray:
    """`count` elements of C(m), distinct unless replace (above 2^20: always distinct)."""
    m = modulus(m, LARGEST)
    if m <= 2**20:
        candidates = increments(m)
        if len(candidates) < (1 if replace else count):
            raise TaskError(f"mod {m} there are {len(candidates)} increments, fewer than {count}")
        return rng.choice(candidates, count, replace=replace)
    found: dict[int, None] = {}  # in the order of drawing, without repeats
    while len(found) < count:
        drawn = rng.integers(3, m, count, dtype=np.uint64).tolist()
        found |= dict.fromkeys(c for c in drawn if math.gcd(c, m) == 1)
    return integers(list(found)[:count], "increments", 3, LARGEST)


# -- numbers as tokens -----------------------------------------------------------------------------


def to_digits(x: np.ndarray, base: int, count: int) -> np.ndarray:
    """Base-b digits (..., count) of integers (...) from 0 to base^count - 1, the lowest first.

    >>> to_digits(np.array([2026]), 10, 4)
    array([[6, 2, 0, 2]])
    """
    places, limit = _places(base, count)
    digits = integers(x, "numbers", 0, limit - 1)[..., None] // places % int(base)
    return digits.astype(np.int64, copy=False)


def from_digits(digits: np.ndarray, base: int) -> np.ndarray:
    """The integers (...) with digits (..., count), the lowest first."""
    digits = integers(digits, "digits", 0, base - 1)
    places, limit = _places(base, digits.shape[-1])
    return integers((digits * places).sum(axis=-1), "numbers", 0, limit)


def _places(base: int, count: int) -> tuple[np.ndarray, int]:
    """1, b, b^2, ... in a type that holds every number of `count` digits, and b^count."""
    base = integer(base, "the base", 2)
    *places, limit = (base**i for i in range(count + 1))
    return np.array(places, dtype=np.int64 if limit <= INT64 else object), limit


# -- data sets -------------------------------------------------------------------------------------


Grid = tuple[int, np.ndarray, np.ndarray]  # modulus, and pairs: multipliers (n,), increments (n,)


@dataclass
class LcgData:
    """A stream of training sequences, and tests with a modulus, or with a and c, it never uses.

    moduli   (M,) to train on
    a, c     (M, n), multipliers and increments of each modulus, or (1, n), of all of them
    tests    {name: (m, a, c)}: the modulus and every pair to be tested
    length   numbers in a sequence
    first    the number of the first one (x_0 is uniform below m)
    base     None: a token is a number; else numbers are `digits` tokens, lowest digit first
    """

    moduli: np.ndarray
    a: np.ndarray
    c: np.ndarray
    tests: dict[str, Grid]
    length: int
    vocab: int
    first: int = 0
    base: int | None = None
    digits: int = 1

    def __post_init__(self):
        for name in ("length", "vocab", "first", "digits"):
            setattr(self, name, integer(getattr(self, name), name, 0))

    @property
    def positions(self) -> np.ndarray:
        """Input positions that carry loss: all of them."""
        return np.arange(self.length * self.digits - 1)

    def _numbers(self, m, a, c, rng: np.random.Generator) -> np.ndarray:
        largest = (integers(m, "moduli", 2, LARGEST) - 1).astype(np.uint64)
        x0 = rng.integers(0, largest, dtype=np.uint64, endpoint=True)
        x = generate(m, a, c, x0, self.length + self.first)
        return x[:, self.first :]

    def batch(self, count: int, rng: np.random.Generator, step: int = 1) -> np.ndarray:
        """Training tokens (count, length digits); modulus, multiplier, increment, seed uniform."""
        i = rng.integers(len(self.moduli), size=count)
        a = _draw_for(self.a, i, rng)
        c = _draw_for(self.c, i, rng)
        return self.tokens(self._numbers(self.moduli[i], a, c, rng))

    def test(self, name: str, rows: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(numbers (rows, length), multipliers (rows,)) of a test set.

        Pairs at random, without repeats while they last."""
        m, a, c = self.tests[name]
        orders = [rng.permutation(len(a)) for _ in range(math.ceil(rows / len(a)))]
        order = np.concatenate(orders)[:rows]
        x = self._numbers(np.full(rows, m), a[order], c[order], rng)
        return x, a[order]

    def sets(self, rng: np.random.Generator, rows: int = 512) -> dict[str, np.ndarray]:
        """Sequences to be measured: "train", of the training stream, and every test set by name."""
        tests = {}
        for name in self.tests:
            numbers, _ = self.test(name, rows, rng)
            tests[name] = self.tokens(numbers)
        return {"train": self.batch(rows, rng), **tests}

    def tokens(self, x: np.ndarray) -> np.ndarray:
        """Numbers (B, length) -> tokens (B, length digits)."""
        if self.base is None:
            return x
        return to_digits(x, self.base, self.digits).reshape(len(x), -1)

    def numbers(self, tokens: np.ndarray) -> np.ndarray:
        """The inverse of `tokens`; also of tokens 1, 2, ... or their predictions.

        Numbers that lack digits are dropped."""
        if self.base is None:
            return tokens
        whole = tokens[:, tokens.shape[1] % self.digits :]
        return from_digits(whole.reshape(len(whole), -1, self.digits), self.base)


def _draw_for(pool: np.ndarray, i: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An entry of pool[i] for every modulus i (rows,); of pool[0] where all moduli share it."""
    row = i if len(pool) > 1 else 0
    return pool[row, rng.integers(pool.shape[1], size=len(i))]


def pair_grid(m: int, a: np.ndarray, c: np.ndarray) -> Grid:
    """All pairs of multipliers and increments."""
    return m, np.repeat(a, len(c)), np.tile(c, len(a))


def _test_grid(m: int, draws: int, rng: np.random.Generator) -> Grid:
    """All pairs of `draws` multipliers and increments of full period, drawn with replacement."""
    a = draw_multipliers(m, draws, rng, replace=True)
    c = draw_increments(m, draws, rng, replace=True)
    return pair_grid(m, a, c)


def fixed_modulus(m: int, length: int, rng: np.random.Generator, draws: int = 64) -> LcgData:
    """One modulus, a token a number, tested on a and c that it never trains on.

    Tests: a and c of full period (`draws` of each, with replacement, all pairs). Training: every
    other a and c below m, most of them of short period.

    >>> data = fixed_modulus(64, 6, np.random.default_rng(0))
    >>> data.batch(2, np.random.default_rng(0))
    array([[19, 32, 30, 50, 42, 58],
           [ 2, 29, 21, 21, 21, 21]])
    """
    m = modulus(m, LARGEST_LIST)
    tests = {str(m): _test_grid(m, draws, rng)}
    _, test_a, test_c = tests[str(m)]
    a = np.setdiff1d(np.arange(1, m), test_a)[None]
    c = np.setdiff1d(np.arange(1, m), test_c)[None]
    return LcgData(np.array([m]), a, c, tests, length, vocab=m)


def unseen_modulus(
    m: int, length: int, rng, train_moduli=128, pool=128, draws=64, held_out=None
) -> LcgData:
    """Many moduli around m, a token a number; tests on m and on others that it never trains on.

    Candidates are the integers from length to floor(1.2 m), the vocabulary; held_out: test moduli
    besides m (default: the paper's six for m = 2048, else the four with most multipliers). All
    moduli share `pool` multipliers and increments, which need not be below the modulus, and exclude
    `draws` test values of each for m. (The authors' period filter keeps all but a few sequences and
    is left out.)

    >>> data = unseen_modulus(256, 32, np.random.default_rng(0))
    >>> list(data.tests), data.vocab, len(data.moduli)
    (['256', '243', '128', '81', '162'], 307, 128)
    >>> bool(np.isin(256, data.moduli))
    False
    """
    m = modulus(m, LARGEST_LIST)
    vocab = int(1.2 * m)
    candidates = np.arange(length, vocab + 1)
    if held_out is None:
        held_out = _richest_moduli(m, candidates)
    held_out = integers(held_out, f"test moduli of a network for moduli around {m}", 2, vocab)
    held_out = [q for q in held_out.tolist() if q != m]
    moduli = np.setdiff1d(candidates, [m, *held_out])
    if len(moduli) < train_moduli:
        there = f"from {length} to {vocab} there are {len(moduli)}"
        raise TaskError(f"{train_moduli} training moduli were asked for, but {there}")

    tests = {str(m): _test_grid(m, draws, rng)}
    _, test_a, test_c = tests[str(m)]
    free_a = np.setdiff1d(np.arange(1, vocab), test_a)
    free_c = np.setdiff1d(np.arange(1, vocab), test_c)
    left = min(len(free_a), len(free_c))
    if left < pool:
        asked = f"{pool} multipliers and increments were asked for"
        raise TaskError(f"{asked}, but {left} are left beside the tests")
    a = rng.choice(free_a, pool, replace=False)[None]
    c = rng.choice(free_c, pool, replace=False)[None]
    for q in held_out:  # all multipliers, 16 increments
        test_c = draw_increments(q, 16, rng, replace=True)
        tests[str(q)] = pair_grid(q, np.array(multipliers(q)), test_c)
    moduli = rng.choice(moduli, train_moduli, replace=False)
    return LcgData(moduli, a, c, tests, length, vocab)


def _richest_moduli(m: int, candidates: np.ndarray) -> list[int]:
    """The paper's test moduli for 2048; else the four candidates with most multipliers, m aside."""
    if m == PAPER_TEST_MODULI[0]:
        return list(PAPER_TEST_MODULI[1:])
    others = candidates[candidates != m]
    share = [hull_dobell_step(int(q)) / q for q in others]  # the smaller, the more multipliers
    return others[np.argsort(share, kind="stable")[:4]].tolist()


def _check_digits(base: int, digits: int, largest: int, what: str) -> None:
    _, limit = _places(base, digits)
    if largest > limit:
        held = f"{digits} digits in base {base} hold numbers below {limit}"
        raise TaskError(f"{held}, too few for {what} {largest}")


def fixed_modulus_digits(
    m: int, length: int, base: int, digits: int, rng, pool=1024, draws=64
) -> LcgData:
    """One modulus up to base^digits, numbers cut in digits, tested on a and c never trained on.

    `pool` multipliers and increments of full period in training, `draws` others of each in the
    tests, all pairs. Sequences start at x_1."""
    m = modulus(m, LARGEST)
    _check_digits(base, digits, m, "the modulus")
    a = draw_multipliers(m, pool + draws, rng)
    c = draw_increments(m, pool + draws, rng)
    tests = {str(m): pair_grid(m, a[pool:], c[pool:])}
    moduli = np.array([m])
    a = a[None, :pool]
    c = c[None, :pool]
    return LcgData(moduli, a, c, tests, length, vocab=base, first=1, base=base, digits=digits)


def unseen_modulus_digits(
    largest: int, length: int, base: int, digits: int, rng, train_moduli=2048, pool=8, draws=64
) -> LcgData:
    """Moduli up to `largest`, numbers cut in digits; tests on the powers of 2, 3, 5, 7 in there.

    Squares at least. Every training modulus has `pool` multipliers and increments, of
    full period as far as some 8 `pool` draws find such besides the tests' values, which no modulus
    trains on, then arbitrary ones below `largest`."""
    largest = modulus(largest, LARGEST_LIST)
    _check_digits(base, digits, largest, "moduli up to")
    smallest = max(base, length, 5)
    powers = _prime_powers(smallest, largest)
    moduli = np.setdiff1d(np.arange(smallest, largest + 1), powers)
    if not powers or len(moduli) < train_moduli:
        there = f"{len(moduli)} moduli to train on and {len(powers)} to test"
        raise TaskError(f"from {smallest} to {largest} there are {there}")

    tests = {str(q): _test_grid(q, draws, rng) for q in powers}
    test_a = np.unique(np.concatenate([a for _, a, _ in tests.values()]))
    test_c = np.unique(np.concatenate([c for _, _, c in tests.values()]))
    moduli = np.sort(rng.choice(moduli, train_moduli, replace=False))
    tries = 8 * pool + 64
    pool_a = []
    pool_c = []
    for q in moduli.tolist():
        step = hull_dobell_step(q)
        a = 1 + step * rng.integers(1, max(q // step, 2), tries)
        c = rng.integers(3, q, tries)
        full_period_a = a[a < q]
        full_period_c = c[np.gcd(c, q) == 1]
        any_a = rng.integers(1, largest, tries)
        any_c = rng.integers(1, largest, tries)
        pool_a.append(_first_unused(full_period_a, any_a, test_a, pool))
        pool_c.append(_first_unused(full_period_c, any_c, test_c, pool))
    a = np.array(pool_a)
    c = np.array(pool_c)
    return LcgData(moduli, a, c, tests, length, vocab=base, first=1, base=base, digits=digits)


def _prime_powers(low: int, high: int) -> list[int]:
    """Squares and higher powers of 2, 3, 5 and 7 from low to high, ascending."""
    powers = []
    for p in (2, 3, 5, 7):
        powers += [p**e for e in range(2, 65) if low <= p**e <= high]
    return sorted(powers)


def _first_unused(best, others, used: np.ndarray, count: int) -> list[int]:
    """The first `count` distinct values of `best`, then `others`, that are not in `used`."""
    values = np.concatenate([best, others])
    free = values[~np.isin(values, used)]
    return list(dict.fromkeys(free.tolist()))[:count]


# -- classical predictors --------------------------------------------------------------------------
# Like a network they read x_0 ... x_t and answer x_{t+1}, at every t: (B, T) -> (B, T), -1 where
# they have no answer.


def known_modulus(x: np.ndarray, m) -> np.ndarray:
    """x_{t+1} = x_t + (d_{t-1}/g) (a g) mod m wherever g divides d_{t-1}, d_i = x_{i+1} - x_i.

    d_{i+1} = a d_i: Euclid's algorithm combines the pairs (d_i, d_{i+1}) to (g, a g), g their
    common divisor with m. Under Hull-Dobell d_0 is prime to m, so that three numbers suffice. m
    (B,) or an integer.
    """
    x = integers(x, "numbers", 0, LARGEST)
    m = np.broadcast_to(integers(m, "the modulus", 2, LARGEST), len(x))
    exact = _exact_type(m)
    d = (np.diff(x) % m[:, None]).astype(exact)
    answer = np.full(x.shape, -1, dtype=object if exact is object else int)
    x = x.astype(exact)
    m = m.astype(exact)
    g = m
    ag = np.zeros_like(m)  # the pair (m, a m = 0) holds as well
    for t in range(1, x.shape[1]):
        last = d[:, t - 1]
        if t > 1:
            g, ag = _euclid(g, ag, d[:, t - 2], last, m)
        step = last // g * ag % m
        following = (x[:, t] + step) % m
        known = last % g == 0
        answer[known, t] = following[known]
    return integers(answer, "answers", -1, LARGEST)


def _euclid(g, ag, d, ad, m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(h, a h mod m), h = gcd(g, d), of the pairs (g, a g) and (d, a d); all (B,), unsigned."""
    g, ag, d, ad = (v.copy() for v in (g, ag, d, ad))
    while d.any():
        on = d > 0
        quotient = g[on] // d[on]
        rest = g[on] - quotient * d[on]
        taken = quotient * ad[on] % m[on]
        a_rest = (ag[on] + (m[on] - taken)) % m[on]
        g[on] = d[on]
        ag[on] = ad[on]
        d[on] = rest
        ad[on] = a_rest
    return g, ag


def estimated_modulus(x: np.ndarray) -> np.ndarray:
    """m from x_0 ... x_t at every t, (B, T); -1 as long as nothing is known.

    d_{i+2} d_i - d_{i+1}^2 is a multiple of m; M_t, the greatest common divisor of all of them, is
    m times a small factor soon: the estimate is the smallest M_t / q, q <= 64, that is above every
    number seen, and at most 2^64."""
    x = integers(x, "numbers", 0, LARGEST)
    large = x.max(initial=0) >= 2**30  # the products reach 2 m^2
    d = np.diff(x).astype(object if large else np.int64)
    multiples = d[:, 2:] * d[:, :-2] - d[:, 1:-1] ** 2
    divisor = np.gcd.accumulate(np.abs(multiples), axis=1)
    largest = np.maximum.accumulate(x, axis=1)[:, 3:]
    estimate = np.full(x.shape, -1, dtype=d.dtype)
    known = estimate[:, 3:]  # a view: two products need four numbers
    for q in range(64, 0, -1):
        quotient = divisor // q
        fits = (divisor % q == 0) & (quotient > largest) & (quotient <= LARGEST)
        new = fits & (known < 0)
        known[new] = quotient[new]
    return integers(estimate, "estimates", -1, LARGEST)


def unknown_modulus(x: np.ndarray, m=None) -> np.ndarray:
    """known_modulus with the estimate of the modulus at every position; m is not used."""
    x = integers(x, "numbers", 0, LARGEST)
    estimate = estimated_modulus(x)
    answer = np.full_like(estimate, -1)
    for t in range(3, x.shape[1]):
        m = estimate[:, t]
        new = (m > 0) & (m != estimate[:, t - 1])
        if new.any():
            answer[new, t:] = known_modulus(x[new], m[new])[:, t:]
    return np.where(estimate > 0, answer, -1)


def look_back(x: np.ndarray, m: int, order: int = 1) -> np.ndarray:
    """x_{t+1} = sum_{j=1..n} (-1)^(j+1) C(n, j) x_{t+1-jr} mod m, n = order.

    r is the largest divisor of m that the context allows (n r <= t + 1). Order 1 copies: the digits
    of period r repeat (x mod p^i has the period p^i), the others are wrong. Order n is right when
    n (v_p(r) + s) - s >= v_p(m), s = v_p(a - 1), for all p.
    """

    m = modulus(m, LARGEST)
    order = integer(order, "the order", 1)
    exact = np.int64 if m << order < INT64 else object
    x = integers(x, "numbers", 0, m - 1).astype(exact)
    length = x.shape[1]
    divisors = [r for r in range(1, length // order + 1) if m % r == 0]
    answer = np.full_like(x, -1)
    ends = [order * r - 1 for r in divisors[1:]] + [length]
    for r, last in zip(divisors, ends, strict=False):  # no divisor, no answer
        first = order * r  # r is the largest with first .. last numbers in context
        total = 0
        for j in range(1, order + 1):
            weight = (-1) ** (j + 1) * math.comb(order, j)
            total = total + weight * x[:, first - j * r : last + 1 - j * r]
        answer[:, first - 1 : last] = total % m
    return integers(answer, "answers", -1, m)


SOLVERS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "known modulus": known_modulus,
    "unknown modulus": unknown_modulus,
    "copy by period": look_back,
    "look-back order 2": partial(look_back, order=2),
    "look-back order 3": partial(look_back, order=3),
}
