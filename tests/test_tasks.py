"""Tables of tasks against plain Python arithmetic, groups, splits, refusals."""

import itertools
import json
import subprocess
import sys
from math import prod
from pathlib import Path

import numpy as np
import pytest

from tinygrok.engine.errors import InputError
from tinygrok.engine.rng import generator
from tinygrok.probes.fourier import ipr, neuron_ipr
from tinygrok.tasks import TASKS
from tinygrok.tasks.modular import (
    TaskError,
    addition,
    all_pairs,
    division,
    inverses,
    is_prime,
    multiplication,
    polynomial,
    powers,
    product,
    separable,
)

P = 13
FUNCTIONS = [
    (addition(P, (2, -3)), lambda a, b: 2 * a - 3 * b),
    (multiplication(P, (2, 15)), lambda a, b: a**2 * b**15),
    (polynomial(P, {(4, 1): 2, (0, 2): 5, (0, 0): 7}), lambda a, b: 2 * a**4 * b + 5 * b**2 + 7),
]


@pytest.mark.parametrize(
    ("task", "f"), FUNCTIONS, ids=[t.name + str(i) for i, (t, _) in enumerate(FUNCTIONS)]
)
def test_tables(task, f):
    table = task.table()
    assert all(table[a, b] == f(a, b) % P for a in range(P) for b in range(P))


def composed(elements):
    """(a, b) -> the number of the element v -> a(b(v)), elements given as lists of their values."""

    def answer(a, b):
        return elements.index([elements[a][v] for v in elements[b]])

    return answer


def symmetries(corners):
    """What the symmetries of a regular polygon do to its corners: rotations, then reflections."""
    sides = [
        [(r + sign * v) % corners for v in range(corners)]
        for sign in (1, -1)
        for r in range(corners)
    ]
    assert all(abs(s[v] - s[v - 1]) in (1, corners - 1) for s in sides for v in range(corners))
    return sides


PERMUTATIONS = {k: [list(x) for x in itertools.permutations(range(k))] for k in (3, 4, 5)}
BRUTE_FORCE = {  # name -> p, and the answer to (a, b), -1 where there is none
    "addition": (13, lambda a, b: (a + b) % 13),
    "subtraction": (13, lambda a, b: (a - b) % 13),
    "multiplication": (13, lambda a, b: a * b % 13),
    "division": (13, lambda a, b: next((q for q in range(13) if b and q * b % 13 == a), -1)),
    "composition": (24, composed(PERMUTATIONS[4])),
    "dihedral": (14, composed(symmetries(7))),
}


@pytest.mark.parametrize("name", TASKS)
def test_every_task_against_brute_force(name):
    p, answer = BRUTE_FORCE[name]
    task = TASKS[name](p)
    assert (task.name, task.p, task.terms) == (name, p, 2)
    np.testing.assert_array_equal(
        task.table(), [[answer(a, b) for b in range(p)] for a in range(p)]
    )
    with pytest.raises(TaskError) as error:
        TASKS[name](1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "p"),
    [("composition", p) for p in (6, 24, 120, 720)] + [("dihedral", p) for p in (6, 8, 50)],
)
def test_group_axioms(name, p):
    task = TASKS[name](p)
    table = task.table()
    everything = np.arange(p)
    assert (table[0] == everything).all(), "0 is the identity"
    assert (table[:, 0] == everything).all()
    assert (np.sort(table, axis=0) == everything[:, None]).all(), "closed, and every line has all"
    assert (np.sort(table, axis=1) == everything).all()
    inverse = (table == 0).argmax(axis=1)
    assert (table[everything, inverse] == 0).all()
    assert (table[inverse, everything] == 0).all()
    assert (table != table.T).any(), "not commutative"
    a, b, c = np.random.default_rng(p).integers(p, size=(3, 2000))
    np.testing.assert_array_equal(table[table[a, b], c], table[a, table[b, c]])
    with pytest.raises(TaskError, match="no order is known"):
        task.wave_order  # noqa: B018
    train, test = task.split(0.5, generator(0, "split"))
    assert len(train) + len(test) == p * p


def test_the_120_permutations_of_five():
    table, s5 = TASKS["composition"](120).table(), PERMUTATIONS[5]
    for a, b in np.random.default_rng(0).integers(120, size=(500, 2)):
        assert s5[table[a, b]] == [s5[a][s5[b][i]] for i in range(5)]


def test_sizes_that_no_group_has_are_refused():
    with pytest.raises(TaskError, match="6, 24, 120, 720, not 97"):
        TASKS["composition"](97)
    with pytest.raises(TaskError, match="even p of at least 6, not 9"):
        TASKS["dihedral"](9)


def example(name, *flags, folder):
    script = Path(__file__).parent.parent / "examples" / f"{name}.py"
    command = [sys.executable, str(script), *flags, "--out", str(folder / "out")]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [["composition", "--p", "6"], ["dihedral", "--p", "12"]])
def test_a_group_trains_without_an_ipr(flags, tmp_path):
    done = example("grok_addition", "--task", *flags, "--steps", "30", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert list((tmp_path / "out").glob("*.png"))
    results = json.loads((tmp_path / "out" / "run.json").read_text())["results"]
    assert results["train_accuracy"] > 0.9
    assert results["ipr_mean"] is None


@pytest.mark.slow
@pytest.mark.parametrize(("task", "p"), [("addition", "2"), ("addition", "5"), ("division", "3")])
def test_a_tiny_modulus_has_a_figure(task, p, tmp_path):
    done = example("grok_addition", "--task", task, "--p", p, "--steps", "20", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "out").glob("*.png"))


def test_an_experiment_on_waves_refuses_a_group(tmp_path):
    done = example("corrupted_labels", "--task", "dihedral", "--p", "12", folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "no order is known" in done.stderr
    assert not list(tmp_path.iterdir())


def test_wave_order():
    """Along it every input and the answer go around the circle in equal steps, or it is refused."""
    root = powers(13, 1)[[pow(2, t, 13) for t in range(12)]]
    for task in (addition(13), addition(13, (2, 5, 12)), TASKS["subtraction"](13)):
        assert task.wave_order is None
    for task in (multiplication(13), multiplication(13, (2, 15)), division(13)):
        np.testing.assert_array_equal(task.wave_order, root)
    n = np.arange(13)
    for task in (
        separable(13, [n, n], n**2),
        separable(13, [n, n**2]),
        product(13, [n, n + 1]),
        product(13, [n, n], n + 1),
        polynomial(13, {(1, 1): 1}),
    ):
        with pytest.raises(TaskError, match="no order is known"):
            task.wave_order  # noqa: B018


def test_tables_of_number_theory():
    for p in (2, 3, 13):
        assert inverses(p)[0] == 0
        assert (inverses(p) * np.arange(p) % p)[1:].tolist() == [1] * (p - 1)
    assert all_pairs(3).tolist() == [[x, y] for x in range(3) for y in range(3)]
    assert powers(5, 3).tolist() == [0, 1, 3, 2, 4]


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


@pytest.mark.parametrize("terms", [1, 2, 3, 4])
def test_sums_and_products_of_any_number_of_terms(terms):
    """All of the table; a split of it parts it; the waves stand in the order of the sum."""
    for task, answer in ((addition(5, terms=terms), sum), (multiplication(5, terms=terms), prod)):
        assert (task.p, task.terms, task.size) == (5, terms, 5**terms)
        for n in itertools.product(range(5), repeat=terms):
            assert task.table()[n] == answer(n) % 5
        train, test = task.split(0.5, generator(0, "split"))
        assert sorted([*train, *test]) == list(range(5**terms))
        order = task.wave_order
        assert order is None if answer is sum else order.tolist() == [1, 2, 4, 3]


def test_two_terms_are_what_they_were():
    pairs = addition(P).inputs(np.arange(P * P))
    np.testing.assert_array_equal(addition(P, terms=2).inputs(np.arange(P * P)), pairs)
    for task in (addition, multiplication):
        for same in (task(P, (1, 1)), task(P, terms=2), task(P, [1, 1], 2)):
            np.testing.assert_array_equal(same.table(), task(P).table())
            split = same.split(0.3, generator(1, "split"))
            np.testing.assert_array_equal(split[0], task(P).split(0.3, generator(1, "split"))[0])


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
        lambda: addition(7, (1, 2, 3), terms=2),
        lambda: multiplication(7, (1, 2), terms=3),
        lambda: polynomial(7, {}),
        lambda: polynomial(7, {(1, 2): 1, (1,): 2}),
        lambda: addition(7).split(0.001, generator(0, "split")),
        lambda: addition(7).split(1.0, generator(0, "split")),
    ):
        with pytest.raises(TaskError) as error:
            bad()
        assert "\n" not in str(error.value)
    for terms in (0, 65, 1.5):
        with pytest.raises(InputError, match="terms must"):
            addition(7, terms=terms)
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
