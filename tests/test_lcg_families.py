"""Mixtures of families of generators: what each family promises, shares that move, no test
modulus in training."""

import math

import numpy as np
import pytest
from _lcg_families import (
    FAMILIES,
    FAMILIES_OF_ONE,
    mixed_moduli,
    mixed_modulus,
    of_small_order,
    units,
)
from _moving_shares import MovingShares

from tinygrok.engine.errors import InputError
from tinygrok.tasks import lcg

HELD_OUT = [32, 27, 50]
EVEN = {"wrap": 0.2, "full": 0.4, "free": 0.4}


def mixed(moduli, length, held_out, start, end, ramp=(300, 1000), seed=0):
    shares = MovingShares(FAMILIES, start, end, ramp)
    return mixed_moduli(*moduli, length, np.random.default_rng(seed), held_out, shares)


def make(end, start=None, length=17, seed=0):
    return mixed((16, 60), length, HELD_OUT, start or end, end, seed=seed)


def recovered(row):
    """All (m, a, c) with which a sequence agrees, m up to the vocabulary."""
    found = []
    for m in range(row.max() + 1, 61):
        for a in range(1, m):
            c = (row[1] - a * row[0]) % m
            if (row[1:] == (a * row[:-1] + c) % m).all():
                found.append((m, a, c))
    return found


@pytest.mark.parametrize("m", [16, 27, 60])
def test_small_orders(m):
    expected = []
    for a in range(2, m):
        powers = [pow(a, r, m) for r in range(1, 9)]
        if math.gcd(a, m) == 1 and 1 in powers:
            expected.append(a)
    assert of_small_order(m, 8).tolist() == expected


def test_units_are_all_equally_likely():
    c = units(np.full(40_000, 15), np.random.default_rng(0))
    values, counts = np.unique(c, return_counts=True)
    assert values.tolist() == [1, 2, 4, 7, 8, 11, 13, 14]
    assert abs(counts - 5000).max() < 5 * 5000**0.5


@pytest.mark.parametrize("family", ["wrap", "full", "free"])
def test_family(family):
    """Every sequence is what its family says, and of a training modulus."""
    data = make({family: 1.0})
    x = data.batch(60, np.random.default_rng(1))
    assert x.shape == (60, 17)
    for row in x:
        candidates = [found for found in recovered(row) if found[0] not in HELD_OUT]
        if family == "wrap":
            fits = [a == 1 and math.gcd(m, c) == 1 for m, a, c in candidates]
        elif family == "full":
            rich = [(m, a) for m, a, c in candidates if math.gcd(m, c) == 1 and a > 1]
            fits = [(a - 1) % lcg.hull_dobell_step(m) == 0 for m, a in rich]
        else:
            fits = [a in of_small_order(m, 8) for m, a, _ in candidates]
            assert len(set(row.tolist())) == 17
        assert any(fits), (row, candidates)


def test_no_test_modulus_in_training():
    for pairs in (make(EVEN).full, make(EVEN).free):
        assert not set(pairs.moduli.tolist()) & set(HELD_OUT)
    assert not set(make(EVEN).moduli.tolist()) & set(HELD_OUT)


def test_pairs_are_drawn_by_modulus():
    """Moduli are equally likely, and the multipliers of one too."""
    pairs = make(EVEN).full
    m, a = pairs.draw(30_000, np.random.default_rng(0))
    _, counts = np.unique(m, return_counts=True)
    expected = 30_000 / len(pairs.moduli)
    assert len(counts) == len(pairs.moduli)
    assert abs(counts - expected).max() < 5 * expected**0.5
    of_64 = a[m == 48]
    assert set(of_64.tolist()) == {13, 25, 37}


def test_shares_move():
    data = make(EVEN, start={"wrap": 1.0})
    assert data.shares(1).tolist() == [1, 0, 0, 0]
    assert data.shares(650) == pytest.approx([0.6, 0.2, 0.2, 0])
    assert data.shares(5000) == pytest.approx([0.2, 0.4, 0.4, 0])
    assert len(data.shares(1)) == len(FAMILIES)


def test_the_papers_draw_is_a_family():
    data = make({"paper": 1.0})
    x = data.batch(500, np.random.default_rng(0), step=2000)
    plain = lcg.LcgData.batch(data, 500, np.random.default_rng(0))
    assert x.shape == plain.shape
    repeats = (x[:, :-1] == x[:, -1:]).any(axis=1)
    assert repeats.mean() > 0.5  # what the other families avoid


def test_tests_have_the_full_period():
    data = make(EVEN)
    for m in HELD_OUT:
        x, a = data.test(str(m), 40, np.random.default_rng(0))
        assert set(a.tolist()) <= set(lcg.multipliers(m))
        x, a = data.test(f"{m}, a = 1", 40, np.random.default_rng(0))
        assert (np.diff(x, axis=1) % m == (x[:, 1:2] - x[:, :1]) % m).all()


@pytest.mark.parametrize(
    ("held_out", "end", "message"),
    [
        ([61], EVEN, "test moduli"),
        ([31], EVEN, "multiplier"),
        (HELD_OUT, {"wrap": 0.5}, "sum to 1"),
        (HELD_OUT, {"steps": 1.0}, "shares of wrap, full, free, paper"),
    ],
)
def test_refusals(held_out, end, message):
    with pytest.raises(InputError, match=message):
        mixed((16, 60), 17, held_out, EVEN, end)


WRAP = {"wrap": 1.0}


@pytest.mark.parametrize(
    ("moduli", "length", "held_out", "end", "ramp", "message"),
    [
        ((4, 10), 33, [9], {"free": 1.0}, (0, 1), "without repeats"),
        ((5, 7), 4, [], {"full": 1.0}, (0, 1), "leave out the family full"),
        ((8, 9), 6, [8, 9], WRAP, (0, 1), "no modulus from 8 to 9 to train on"),
        ((8, 20), 6, [9], WRAP, (5, 5), "not from 5 to 5"),
        ((8, 20), 6, [9], {"wrap": 0.5, "full": 0.5 + 5e-10}, (0, 1), "sum to 1"),
        ((8, 20), 3, [9], WRAP, (0, 1), "numbers in a sequence"),
    ],
)
def test_what_could_not_be_drawn_is_refused_first(moduli, length, held_out, end, ramp, message):
    with pytest.raises(InputError, match=message):
        mixed(moduli, length, held_out, WRAP, end, ramp)


def test_what_has_no_share_need_not_exist():
    data = mixed((5, 7), 4, [], WRAP, WRAP | {"full": 0.0})
    assert data.batch(8, np.random.default_rng(0)).shape == (8, 4)


def test_the_set_of_the_training_stream_is_of_its_last_shares():
    """Accuracy in training is measured on what is trained on at the end."""
    data = make({"paper": 1.0}, start=WRAP)
    rng = np.random.default_rng(0)
    rng_again = np.random.default_rng(0)
    for name in data.tests:
        data.test(name, 512, rng_again)
    expected = data.batch(512, rng_again, 1000)
    np.testing.assert_array_equal(data.sets(rng)["train"], expected)


def one_modulus(start, end, m=64, length=65, draws=8):
    shares = MovingShares(FAMILIES_OF_ONE, start, end, (10, 20))
    return mixed_modulus(m, length, np.random.default_rng(0), draws, shares)


def test_one_modulus_goes_over_to_full_periods():
    """First the authors' draw, in which little has the full period; in the end all of it has."""
    data = one_modulus({"any": 1.0}, {"full": 1.0})
    rng = np.random.default_rng(0)
    early = data.batch(200, rng, step=10)
    middle = data.batch(200, rng, step=15)
    late = data.batch(200, rng, step=20)
    full = [
        np.mean([len(set(row[:64])) == 64 for row in x.tolist()]) for x in (early, middle, late)
    ]
    assert full[0] < 0.2 < full[1] < 0.8 < full[2] == 1
    assert (late[:, 0] == late[:, 64]).all()


def test_one_modulus_never_trains_on_its_tests():
    data = one_modulus({"any": 0.5, "full": 0.5}, {"full": 1.0})
    _, test_a, test_c = data.tests["64"]
    x = data.batch(400, np.random.default_rng(0), step=1)
    for row in x[:, :4]:
        fits = [a for a in range(64) if (row[2] - row[1] - a * (row[1] - row[0])) % 64 == 0]
        pairs = [(a, (row[1] - a * row[0]) % 64) for a in fits]
        assert any(a not in test_a and c not in test_c for a, c in pairs)


def test_tests_that_leave_no_multiplier_are_refused():
    with pytest.raises(InputError, match="the tests leave no a"):
        one_modulus({"any": 1.0}, {"full": 1.0}, m=8, draws=500)
