"""LCG data and classical predictors: known answers, exact arithmetic, streams that never show a
test pair."""

import math

import numpy as np
import pytest
from _lcg_answers import elements_needed

from tinygrok.engine.errors import InputError
from tinygrok.tasks import lcg
from tinygrok.tasks.modular import TaskError, is_prime

MODULI = [16, 64, 100, 256, 1521, 2048, 2352, 2**16, 2**31, 2**32 - 2**16, 2**32]
# Mersenne's prime and other primes, products of primes, prime powers; 2^64 does not fit 64 bits.
LARGE = [2**32 + 15, 2**33 + 9, 10**12 + 39, 2**48, 2**61 - 1, 2**62, 2**63, 2**64 - 59, 2**64]
LARGE += [3 * 2**31 + 3 * 2**30, (2**32 - 5) * (2**32 - 17), (2**32 - 5) ** 2, 3**40, 10**18]
LARGE += [int(v) for v in np.random.default_rng(5).integers(2**32, 2**64, 12, dtype=np.uint64)]


def rng(seed=0):
    return np.random.default_rng(seed)


def hull_dobell(m, count, seed=0):
    """(a, c, x_0) of full period."""
    a, c = (draw(m, count, rng(seed), True) for draw in (lcg.draw_multipliers, lcg.draw_increments))
    return a, c, rng(seed).integers(0, m, count)


# -- sequences -------------------------------------------------------------------------------------


def test_known_answer():
    """The authors' published sequence."""
    expected = [
        185589872,
        193806545,
        3392976550,
        50989183,
        1776963116,
        4187791805,
        2820441218,
        263817227,
        1358760744,
        12393193,
    ]
    x = lcg.generate(2**32, 55797, 1869217, 185589872, 10)
    np.testing.assert_array_equal(x, expected)
    np.testing.assert_array_equal(lcg.to_digits(x[0], 256, 4), [112, 224, 15, 11])
    np.testing.assert_array_equal(lcg.from_digits(lcg.to_digits(x, 256, 4), 256), x)


def test_the_authors_training_multipliers():
    """The first 1024 distinct k of default_rng(71), a = 4 k + 1: range and s = v_2(a - 1) of the
    published file."""
    generator, k = np.random.default_rng(71), {}
    while len(k) < 1024:
        k |= dict.fromkeys(generator.integers(1, 2**30, 1024 - len(k)).tolist())
    a = 4 * np.array(list(k)) + 1
    assert a.min() == 9_693_905
    assert a.max() == 4_293_460_069
    assert all(v in lcg.multipliers(2**32) for v in a.tolist())
    s = np.array([(v - 1 & 1 - v).bit_length() - 1 for v in a.tolist()])
    counts = {j: int((s == j).sum()) for j in range(2, 17) if (s == j).any()}
    assert counts == {2: 474, 3: 276, 4: 131, 5: 79, 6: 29, 7: 13, 8: 12, 9: 2, 10: 2, 11: 5, 16: 1}


def drawn(m, count):
    """Any multipliers, increments and seeds, as Python's integers."""
    largest = [rng(i).integers(0, m, count, dtype=np.uint64) for i in range(3)]
    return [[int(v) for v in values] for values in largest]


def by_hand(m, a, c, x0, length):
    """One sequence, in Python's integers."""
    x = [x0]
    while len(x) < length:
        x.append((a * x[-1] + c) % m)
    return x


@pytest.mark.parametrize("m", [2, 3, 97, *MODULI, *LARGE])
def test_generate_is_exact(m):
    draws = drawn(m, 20)
    x = lcg.generate(m, *draws, 37)
    assert x.dtype == (np.int64 if x.max() < 2**63 else object)
    assert x.tolist() == [by_hand(m, *given, 37) for given in zip(*draws, strict=True)]
    arrays = (np.array(d, dtype=np.uint64) for d in draws)
    np.testing.assert_array_equal(lcg.generate(m, *arrays, 37), x)
    single = lcg.generate(m, *(d[0] for d in draws), 37)
    assert single.tolist() == x[0].tolist()
    below = lcg.generate(m, draws[0][0] - m, -1, draws[2][0], 9)
    assert below.tolist() == by_hand(m, draws[0][0], m - 1, draws[2][0], 9)


def test_parameters_above_the_modulus_and_a_modulus_a_row():
    x = lcg.generate([5, 7], [13, 13], [11, 11], [3, 6], 4)
    np.testing.assert_array_equal(x, [[3, 0, 1, 4], [6, 5, 6, 5]])


@pytest.mark.parametrize("m", [2**64 + 1, 10**20, 1, 0, -5])
def test_other_moduli_are_refused(m):
    for ask in (
        lcg.hull_dobell_step,
        lcg.multipliers,
        lcg.increments,
        lambda m: lcg.draw_increments(m, 3, rng()),
        lambda m: lcg.fixed_modulus_digits(m, 9, 256, 9, rng(), 8, 4),
        lambda m: lcg.look_back(np.array([[0, 0, 0]]), m),
        lambda m: lcg.generate(m, 1, 1, 0, 5),
        lambda m: lcg.known_modulus(np.array([[0, 0, 0]]), m),
    ):
        with pytest.raises(InputError, match="modulus must lie"):
            ask(m)


def test_moduli_too_large_to_list_are_refused():
    for ask in (
        lcg.increments,
        lambda m: lcg.fixed_modulus(m, 9, rng()),
        lambda m: lcg.unseen_modulus(m, 9, rng()),
        lambda m: lcg.unseen_modulus_digits(m, 9, 256, 8, rng()),
    ):
        with pytest.raises(TaskError, match="modulus must lie"):
            ask(2**33)


def test_prime_factors():
    """Against trial division; large ones multiply back, and their parts pass Fermat's test."""
    for m in range(1, 3000):
        rest, factors = m, {}
        for p in range(2, m + 1):
            while rest % p == 0:
                rest //= p
                factors[p] = factors.get(p, 0) + 1
        assert list(lcg.prime_factors(m).items()) == list(factors.items())
    for m in LARGE:
        factors = lcg.prime_factors(m)
        assert math.prod(p**e for p, e in factors.items()) == m
        assert all(pow(b, p - 1, p) == 1 for p in factors for b in (3, 10) if b % p)
        assert list(factors) == sorted(factors)
    assert lcg.prime_factors(2**61 - 1) == {2**61 - 1: 1}
    assert lcg.prime_factors((2**32 - 5) * (2**32 - 17)) == {2**32 - 17: 1, 2**32 - 5: 1}
    # Pseudoprimes to many bases (OEIS A014233) and Carmichael numbers.
    for composite in (3215031751, 3825123056546413051, 561, 825265, 1152271, 2**62 - 1):
        assert not is_prime(composite)


# -- Hull and Dobell -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("m", "count"),
    {
        2048: 511,
        2178: 32,
        2352: 27,
        1521: 38,
        2312: 33,
        1936: 43,
        1800: 29,
        7776: 647,
        256: 63,
        512: 127,
        64: 15,
    }.items(),
)
def test_number_of_multipliers(m, count):
    assert len(lcg.multipliers(m)) == count


@pytest.mark.parametrize("m", [16, 36, 63, 64, 72, 100, 135])
def test_candidates_have_the_full_period_and_others_have_not(m):
    candidates, units = set(lcg.multipliers(m)), lcg.increments(m)
    for a in range(2, m):
        x = lcg.generate(m, a, units, 1, m)
        full = (np.sort(x, axis=1) == np.arange(m)).all()
        last = (
            m // lcg.hull_dobell_step(m) * lcg.hull_dobell_step(m) - lcg.hull_dobell_step(m) + 1
        )  # the range is half open
        assert (
            full == (a in candidates or a == last + lcg.hull_dobell_step(m) * (a > last)) or a == 1
        )
    assert set(units.tolist()) == {c for c in range(3, m) if np.gcd(c, m) == 1}


@pytest.mark.parametrize("m", [2, 4, 7, 60, 97, 210, 2**31 - 1, 2**61 - 1, 10**12 + 39])
def test_moduli_without_multipliers_are_refused(m):
    with pytest.raises(TaskError, match="Hull-Dobell.*power of 2 from 8 on"):
        lcg.multipliers(m)
    assert len(lcg.multipliers(8)) == 1


def test_draws():
    for m in (2048, 2**32):
        a, c = lcg.draw_multipliers(m, 200, rng()), lcg.draw_increments(m, 200, rng())
        assert len(set(a.tolist())) == len(set(c.tolist())) == 200
        assert all(v in lcg.multipliers(m) for v in a.tolist())
        assert (np.gcd(c, m) == 1).all()
        assert c.min() >= 3
    for m in (2**48, 3**40, 2**63, 2**64):
        a, c = lcg.draw_multipliers(m, 200, rng()), lcg.draw_increments(m, 200, rng())
        assert len(set(a.tolist())) == len(set(c.tolist())) == 200
        assert all(v in lcg.multipliers(m) for v in a.tolist())
        assert all(3 <= v < m and math.gcd(v, m) == 1 for v in c.tolist())
        assert max(c.tolist()) > m / 2 < max(a.tolist())
    with pytest.raises(TaskError, match="15 multipliers"):
        lcg.draw_multipliers(64, 16, rng())
    with pytest.raises(TaskError, match="increments"):
        lcg.draw_increments(64, 40, rng())


def valuation(y, p, e):
    """v_p(y), at most e."""
    return next(k for k in range(e + 1) if k == e or int(y) % p ** (k + 1))


@pytest.mark.parametrize(("p", "e"), [(2, 20), (3, 12), (5, 9)])
def test_low_digits_have_short_periods(p, e):
    """v_p(D_r^n x_t) = n (v_p(r) + s) - s, the law behind every look-back."""
    m = p**e
    a, c, x0 = hull_dobell(m, 200)
    s = np.array([valuation(v, p, e) for v in a - 1])
    for r, n in ((1, 1), (p, 2), (3, 2), (p * p, 3)):
        x = lcg.generate(m, a, c, x0, n * r + 1)
        terms = [(-1) ** j * math.comb(n, j) * x[:, n * r - j * r] for j in range(n + 1)]
        difference = sum(terms) % m
        law = n * (valuation(r, p, e) + s) - s
        measured = [valuation(v, p, e) for v in difference]
        np.testing.assert_array_equal(measured, np.minimum(law, e))


# -- data sets -------------------------------------------------------------------------------------

DATA = {
    "fixed": lambda: lcg.fixed_modulus(256, 65, rng()),
    "unseen": lambda: lcg.unseen_modulus(256, 65, rng(), 60, 100, 16),
    "fixed digits": lambda: lcg.fixed_modulus_digits(2**16, 32, 16, 4, rng(), 100, 20),
    "unseen digits": lambda: lcg.unseen_modulus_digits(2**12, 32, 64, 2, rng(), 300, 6, 8),
}


@pytest.mark.parametrize("kind", DATA)
def test_streams_never_show_a_test_value(kind):
    data = DATA[kind]()
    main = max(data.tests, key=int) if kind == "unseen digits" else next(iter(data.tests))
    tested = data.tests if kind == "unseen digits" else [main]
    for name in tested:
        m, a, c = data.tests[name]
        assert not np.isin(a, data.a).any()
        assert not np.isin(c, data.c).any()
        assert all(v in lcg.multipliers(m) for v in a.tolist())
        assert (np.gcd(c, m) == 1).all()
    if "unseen" in kind:
        assert not np.isin([int(name) for name in data.tests], data.moduli).any()
        assert len(set(data.moduli.tolist())) == len(data.moduli)
    tokens = data.batch(500, rng(1))
    assert tokens.shape == (500, data.length * data.digits)
    assert tokens.min() >= 0
    assert tokens.max() < data.vocab
    x = data.numbers(tokens)
    np.testing.assert_array_equal(data.tokens(x), tokens)
    i = rng(1).integers(len(data.moduli), size=500)  # the first draw of the batch
    assert (x < data.moduli[i][:, None]).all()
    numbers, a = data.test(main, 300, rng())
    assert numbers.shape == (300, data.length)
    assert np.isin(a, data.tests[main][1]).all()
    np.testing.assert_array_equal(data.batch(5, rng(3)), data.batch(5, rng(3)))


def test_fixed_modulus_trains_on_all_other_values():
    data = DATA["fixed"]()
    m, a, c = data.tests["256"]
    assert len(a) == 64 * 64
    assert set(data.a[0]) == set(range(1, 256)) - set(a)
    assert set(data.c[0]) == set(range(1, 256)) - set(c)


@pytest.mark.slow
def test_moduli_of_the_paper():
    data = lcg.unseen_modulus(2048, 257, rng())
    assert sorted(map(int, data.tests)) == sorted(lcg.PAPER_TEST_MODULI)
    assert data.vocab == 2457
    assert data.moduli.min() >= 257
    assert data.moduli.max() <= 2457
    assert len(data.moduli) == 128
    data = lcg.unseen_modulus_digits(2**16, 256, 256, 2, rng(), 2048, 8, 64)
    powers = (
        [2**e for e in range(8, 17)]
        + [3**e for e in range(6, 11)]
        + [5**e for e in (4, 5, 6)]
        + [7**e for e in (3, 4, 5)]
    )
    assert sorted(map(int, data.tests)) == sorted(powers)
    assert data.a.shape == data.c.shape == (2048, 8)


@pytest.mark.parametrize("m", [2**48, 3**40, 2**63, 2**64])
def test_digits_of_large_moduli(m):
    """Training tokens are the digits of sequences mod m, whatever the type of its numbers."""
    base, count = (3, 40) if m % 3 == 0 else (256, 8)
    data = lcg.fixed_modulus_digits(m, 6, base, count, rng(), 16, 4)
    tokens = data.batch(50, rng(1))
    assert tokens.dtype == np.int64
    assert tokens.min() >= 0
    assert tokens.max() < base
    x = data.numbers(tokens)
    digits = tokens.reshape(50, 6, count).tolist()
    assert x.tolist() == [
        [sum(d * base**i for i, d in enumerate(n)) for n in row] for row in digits
    ]
    a, c = (set(pool.ravel().tolist()) for pool in (data.a, data.c))
    for row in x.tolist():
        assert max(row) < m
        assert any((v * row[0] + w) % m == row[1] for v in a for w in c)
    numbers, _ = data.test(str(m), 10, rng())
    np.testing.assert_array_equal(data.numbers(data.tokens(numbers)), numbers)


def test_numbers_drops_incomplete_ones():
    data = DATA["fixed digits"]()
    tokens = data.batch(3, rng())
    np.testing.assert_array_equal(
        data.numbers(tokens[:, 1:]), data.numbers(tokens)[:, 1:]
    )  # the targets of a network


def test_impossible_data_is_refused():
    for make in (
        lambda: lcg.fixed_modulus_digits(2**16 + 1, 32, 16, 4, rng()),
        lambda: lcg.fixed_modulus_digits(2**8, 32, 16, 2, rng(), 100),
        lambda: lcg.fixed_modulus(97, 32, rng()),
        lambda: lcg.unseen_modulus(64, 33, rng(), 128),
        lambda: lcg.unseen_modulus(64, 33, rng(), 20, 128),
        lambda: lcg.unseen_modulus(64, 33, rng(), 20, 20, 4, [61]),
        lambda: lcg.unseen_modulus_digits(2**12, 32, 16, 2, rng()),
        lambda: lcg.unseen_modulus_digits(2**12, 32, 64, 2, rng(), 4020),
    ):
        with pytest.raises(TaskError):
            make()


# -- predictors ------------------------------------------------------------------------------------


def accuracy(solver, m, count=400, length=129, seed=0):
    x = lcg.generate(m, *hull_dobell(m, count, seed), length)
    return (solver(x[:, :-1], m) == x[:, 1:]).mean(axis=0)


@pytest.mark.parametrize("m", MODULI)
def test_known_modulus_needs_three_numbers(m):
    curve = accuracy(lcg.known_modulus, m)
    assert curve[:2].max() < 0.2
    assert (curve[2:] == 1).all()


@pytest.mark.parametrize("m", [60, 64, 97, 210])
def test_known_modulus_of_any_period(m):
    """Any a and c: an answer is right as soon as it is given, and once given for good."""
    a, c, x0 = (rng(i).integers(0, m, 500) for i in range(3))
    x = lcg.generate(m, a, c, x0, 20)
    answer = lcg.known_modulus(x[:, :-1], m)
    given = answer >= 0
    np.testing.assert_array_equal(answer[given][:], x[:, 1:][given])
    assert given[:, 8:].mean() > 0.99
    assert not given[:, 0].any()


@pytest.mark.parametrize("m", LARGE)
def test_predictors_are_exact_for_large_moduli(m):
    """Any a and c: an answer is right as soon as it is given, once the modulus is known."""
    draws = drawn(m, 12)
    x = lcg.generate(m, *draws, 24)
    read = x[:, :-1]
    following = x[:, 1:].tolist()
    known = lcg.estimated_modulus(read) == m
    assert known[:, 12:].mean() > 0.9
    assert (known[:, :3] == 0).all()
    unknown = np.where(known, lcg.unknown_modulus(read), -1)
    for answer in (lcg.known_modulus(read, m), unknown):
        given = 0
        for row, right in zip(answer.tolist(), following, strict=True):
            assert all(p in (-1, q) for p, q in zip(row, right, strict=True))
            given += sum(p >= 0 for p in row[12:])
        assert given >= 0.9 * 11 * 12
    for order in (1, 2, 3):
        divisors = [r for r in range(1, 23 // order + 1) if m % r == 0]
        answer = lcg.look_back(read, m, order)
        for t in range(23):
            r = max((r for r in divisors if order * r <= t + 1), default=0)
            for row, found in zip(x.tolist(), answer[:, t].tolist(), strict=True):
                terms = [
                    (-1) ** (j + 1) * math.comb(order, j) * row[t + 1 - j * r]
                    for j in range(1, order + 1)
                ]
                assert found == (sum(terms) % m if r else -1)


@pytest.mark.slow
@pytest.mark.parametrize("m", [m for m in MODULI if m >= 256])
def test_unknown_modulus(m):
    """Five outputs give the modulus in most cases, twelve practically always."""
    curve = accuracy(lcg.unknown_modulus, m)
    assert curve[4] > 0.75
    assert curve[12] > 0.99
    assert (curve[20:] == 1).all()
    assert curve[:3].max() == 0
    x = lcg.generate(m, *hull_dobell(m, 400), 30)
    assert (lcg.estimated_modulus(x)[:, 20:] == m).all()


@pytest.mark.parametrize(
    ("m", "r", "rates"),
    [
        (256, 4, (0, 0.24, 1)),
        (256, 8, (0, 1, 1)),
        (512, 8, (0, 0.5, 1)),
        (2048, 8, (0, 0.11, 1)),
        (2048, 16, (0, 0.47, 1)),
    ],
)
def test_look_back_rates(m, r, rates):
    """Measured exact rates, and the law n (v_2(r) + s) - s >= w for every sequence."""
    a, c, x0 = hull_dobell(m, 2000)
    s, w = np.array([(int(v) - 1 & 1 - int(v)).bit_length() - 1 for v in a]), m.bit_length() - 1
    for n, rate in zip((1, 2, 3), rates, strict=True):
        t = n * r - 1  # n r numbers in context
        x = lcg.generate(m, a, c, x0, t + 2)
        right = lcg.look_back(x[:, :-1], m, n)[:, t] == x[:, t + 1]
        assert abs(right.mean() - rate) < 0.06
        np.testing.assert_array_equal(right, n * (r.bit_length() - 1 + s) - s >= w)


def test_copies_are_right_in_the_low_digits():
    m = 3**6
    x = lcg.generate(m, *hull_dobell(m, 100), 40)
    answer = lcg.look_back(x[:, :-1], m)
    for t in range(39):
        r = 3 ** int(np.log(t + 1.5) / np.log(3))
        np.testing.assert_array_equal(answer[:, t] % r, x[:, t + 1] % r)


def test_elements_needed():
    assert elements_needed(np.array([0.0, 0.95, 0.5, 0.9, 0.92]), 0.9) == 4
    assert elements_needed(np.array([1.0, 1.0]), 0.9) == 1
    assert elements_needed(np.array([1.0, 0.0]), 0.9) is None
    assert elements_needed(np.array([1.0, np.nan, 1.0]), 0.9) == 3
