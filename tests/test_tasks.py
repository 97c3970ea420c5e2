"""Modular tables against plain Python arithmetic, splits, refusals."""

import numpy as np
import pytest

from tinygrok.engine.rng import generator
from tinygrok.probes.fourier import ipr, neuron_ipr
from tinygrok.tasks.modular import (
    TaskError,
    addition,
    division,
    is_prime,
    multiplication,
    polynomial,
    subtraction,
)

P = 13
FUNCTIONS = [
    (addition(P), lambda a, b: a + b),
    (addition(P, (2, -3)), lambda a, b: 2 * a - 3 * b),
    (subtraction(P), lambda a, b: a - b),
    (multiplication(P), lambda a, b: a * b),
    (multiplication(P, (2, 15)), lambda a, b: a**2 * b**15),
    (polynomial(P, {(4, 1): 2, (0, 2): 5, (0, 0): 7}), lambda a, b: 2 * a**4 * b + 5 * b**2 + 7),
]


@pytest.mark.parametrize(
    ("task", "f"), FUNCTIONS, ids=[t.name + str(i) for i, (t, _) in enumerate(FUNCTIONS)]
)
def test_tables(task, f):
    table = task.table()
    assert all(table[a, b] == f(a, b) % P for a in range(P) for b in range(P))


def test_division_inverts_multiplication():
    table = division(P).table()
    assert (table[:, 0] == -1).all()
    assert all(table[a, b] * b % P == a for a in range(P) for b in range(1, P))
    train, test = division(P).split(0.5, generator(0, "split"))
    assert len(train) + len(test) == P * (P - 1)
    assert (division(P).inputs(np.concatenate([train, test]))[1] > 0).all()


def test_many_terms_and_large_tables():
    task = addition(97, (1, 2, 3, 4))
    last = task.inputs([task.size - 1])
    assert last[:, 0].tolist() == [96] * 4
    assert task.labels(last)[0] == 960 % 97
    assert addition(5, (1, 1, 1)).table().shape == (5, 5, 5)


def test_split():
    train, test = addition(P).split(0.3, generator(3, "split"))
    assert len(train) == int(0.3 * P * P)
    assert sorted([*train, *test]) == list(range(P * P))
    again, _ = addition(P).split(0.3, generator(3, "split"))
    other, _ = addition(P).split(0.3, generator(4, "split"))
    assert np.array_equal(train, again)
    assert not np.array_equal(train, other)


def test_refusals():
    for bad in (
        lambda: multiplication(12),
        lambda: division(91),
        lambda: addition(1),
        lambda: addition(7, (1, 14)),
        lambda: addition(7, ()),
        lambda: multiplication(7, (1, 0)),
        lambda: polynomial(7, {}),
        lambda: polynomial(7, {(1, 2): 1, (1,): 2}),
        lambda: addition(7).split(0.001, generator(0, "split")),
        lambda: addition(7).split(1.0, generator(0, "split")),
    ):
        with pytest.raises(TaskError) as error:
            bad()
        assert "\n" not in str(error.value)
    assert [n for n in range(30) if is_prime(n)] == [2, 3, 5, 7, 11, 13, 17, 19, 23, 29]


def test_ipr():
    """rfft convention: a cosine 1, a constant 1, a spike 1/(p//2+1), noise about 4/p."""
    n = np.arange(97)
    assert np.isclose(ipr(np.cos(2 * np.pi * 5 * n / 97 + 1)), 1)
    assert np.isclose(ipr(np.ones(97)), 1)
    assert np.isclose(ipr(np.eye(97)[3]), 1 / 49)
    assert np.isnan(ipr(np.zeros(97)))
    noise = np.random.default_rng(0).standard_normal((500, 97))
    assert abs(ipr(noise).mean() - 0.041) < 0.002
    wave = np.cos(2 * np.pi * 3 * n / 97)
    weights = {"U": np.stack([np.tile(wave[:, None], 4)] * 2), "W": np.tile(wave, (4, 1))}
    assert np.allclose(neuron_ipr(weights), 1)
