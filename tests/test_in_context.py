"""The in-context task: selections, pools, sequences, and the reference solvers against the exact
formulas."""

import itertools

import numpy as np
import pytest

from tinygrok.engine.rng import generator
from tinygrok.tasks import in_context as ic
from tinygrok.tasks.modular import TaskError


@pytest.mark.parametrize(("p", "base"), [(29, 64), (29, 128), (7, 9), (7, 3), (5, 3)])
def test_rectangles(p, base):
    tasks = ic.rectangle_tasks(p, base, generator(0, "split"))
    assert tasks.shape == (4 * base, 2)
    assert len(np.unique(tasks, axis=0)) == 4 * base
    have = {tuple(t) for t in tasks.tolist()}
    for i, (a, b) in enumerate(tasks[:base].tolist()):
        (a1, v), (u, b1), (u1, v1) = tasks[base + 3 * i : base + 3 * i + 3].tolist()
        assert (a1, b1, u1, v1) == (a, b, u, v)
        assert u not in (a, b)
        assert v not in (a, b, u)
        assert {(a, v), (u, b), (u, v)} <= have


def test_impossible_selections_end():
    for bad in (
        lambda rng: ic.rectangle_tasks(3, 2, rng),
        lambda rng: ic.rectangle_tasks(7, 13, rng),
    ):
        with pytest.raises(TaskError):
            bad(generator(0, "split"))
    make = ic.InContextData.make
    for settings in (
        {"p": 9, "tasks": 8, "alpha": 0.5},
        {"p": 7, "tasks": 10, "alpha": 0.5},
        {"p": 7, "tasks": 8, "alpha": 0.99, "replace": False},
        {"p": 7, "tasks": 8, "alpha": 0.5, "rule": "best"},
        {"p": 7, "tasks": 60, "alpha": 0.5, "rule": "random"},
    ):
        with pytest.raises(TaskError) as error:
            make(shots=8, rng=generator(0, "split"), **settings)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("rule", ["rectangle", "random"])
def test_sets_and_batches(rule):
    data = ic.InContextData.make(29, 32, 256, 0.6, generator(1, "split"), rule)
    assert len(data.train_pool) == 505
    assert len(data.test_pool) == 336
    assert len(data.ood_tasks) == 256
    pools = {tuple(x) for x in data.train_pool}, {tuple(x) for x in data.test_pool}
    assert not pools[0] & pools[1]
    assert not {tuple(t) for t in data.id_tasks} & {tuple(t) for t in data.ood_tasks}
    for tasks, pool, drawn in itertools.product(
        (data.id_tasks, data.ood_tasks), pools, (data.train_pool, data.test_pool)
    ):
        if {tuple(x) for x in drawn} != pool:
            continue
        triples = data.sequences(tasks, data.draw_pairs(drawn, 2, generator(0, "probes"))).reshape(
            -1, 2, 32, 3
        )
        assert {tuple(x) for x in triples[0].reshape(-1, 3)[:, :2]} <= pool
        assert (
            triples[..., 2]
            == (
                triples[..., 0] * tasks[:, 0, None, None]
                + triples[..., 1] * tasks[:, 1, None, None]
            )
            % 29
        ).all()
        assert (triples[..., :2] == triples[:1, ..., :2]).all(), "all tasks see the same questions"
    assert data.batch(1024, generator(0, "batches")).shape == (1024, 96)


def test_rows_without_replacement():
    data = ic.InContextData.make(7, 12, 36, 0.7, generator(0, "split"), replace=False)
    pairs = data.draw_pairs(data.test_pool, 50, generator(0, "batches"))
    assert all(len({tuple(x) for x in row}) == 12 for row in pairs)


def exact_accuracy(p: int, k: int) -> dict[str, float]:
    """Accuracies for uniform tasks and inputs with replacement, two variables, k examples.

    P(rank r):       P0 = p^-2k,   P1 = (p^k - 1)(p + 1)/p^2k,   P2 = (1 - p^-k)(1 - p^(1-k))
    span             P2
    optimal          P2 + P1 [1/p + (1 - 1/p)/p] + P0 [1/p^2 + (1 - 1/p^2)/p]
    ratio_coverage   c = p^-2 [k >= 1] + (1 - p^-2)(1 - (1 - (p-1)/p^2)^k)
    ratio_matching   c + (1 - c)/p
    """
    p0 = p ** (-2 * k)
    p1 = (p**k - 1) * (p + 1) / p ** (2 * k)
    p2 = (1 - p**-k) * (1 - p ** (1 - k))

    def right(known: float) -> float:
        """Accuracy where a share of the queries is known and the others are guessed."""
        return known + (1 - known) / p

    some_match = 1 - (1 - (p - 1) / p**2) ** k
    coverage = (k >= 1) / p**2 + (1 - p**-2) * some_match
    return {
        "span": p2,
        "optimal": p2 + p1 * right(1 / p) + p0 * right(1 / p**2),
        "ratio_coverage": coverage,
        "ratio_matching": right(coverage),
    }


TABLE = {  # p = 29: k -> span, optimal, ratio coverage, ratio accuracy
    0: (0, 0.0356, 0, 0.0345),
    1: (0, 0.0677, 0.0344, 0.0677),
    2: (0.9644, 0.9668, 0.0666, 0.0988),
    5: (1, 1, 0.1568, 0.1858),
    13: (1, 1, 0.3568, 0.3790),
    31: (1, 1, 0.6504, 0.6624),
}


@pytest.mark.parametrize("k", TABLE)
def test_solvers_agree_with_the_exact_formulas(k):
    exact = exact_accuracy(29, k)
    np.testing.assert_allclose(list(exact.values()), TABLE[k], atol=6e-5)
    rng, rows = np.random.default_rng(k), 30_000
    X, q, w = (
        rng.integers(0, 29, (rows, k, 2)),
        rng.integers(0, 29, (rows, 2)),
        rng.integers(0, 29, (rows, 2)),
    )
    Z, truth = np.einsum("rkn,rn->rk", X, w) % 29, (q * w).sum(axis=1) % 29
    for solver, name in ((ic.ratio_matching, "ratio_matching"), (ic.modular_regression, "optimal")):
        answers, known = solver(29, X, Z, q)
        assert (answers == truth)[known].all(), "a known answer is right"
        measured = ic.solver_accuracy(29, answers, known, truth)
        # the exact optimum guesses 0 for a query it cannot span; a uniform guess differs by less
        # than 1/p^2
        assert abs(measured - exact[name]) < 0.005


def test_nothing_is_known_without_examples():
    q = np.array([[0, 0], [1, 2]])
    empty = np.zeros((2, 0, 2), int), np.zeros((2, 0), int)
    assert not ic.ratio_matching(5, *empty, q)[1].any()
    assert ic.modular_regression(5, *empty, q)[1].tolist() == [
        True,
        False,
    ]  # the zero map sends 0 to 0


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_regression_over_many_variables(n):
    """Full rank: always right. Below: known exactly when the query lies in the span (brute force
    over GF(5))."""
    p, rng = 5, np.random.default_rng(n)
    for k in range(n + 2):
        X, q, w = (
            rng.integers(0, p, (300, k, n)),
            rng.integers(0, p, (300, n)),
            rng.integers(0, p, (300, n)),
        )
        Z, truth = np.einsum("rkn,rn->rk", X, w) % p, (q * w).sum(axis=1) % p
        answers, known = ic.modular_regression(p, X, Z, q)
        assert (answers == truth)[known].all()
        if k <= 3:
            combinations = np.array(list(itertools.product(range(p), repeat=k))).reshape(p**k, k)
            spans = (
                (np.einsum("ck,rkn->rcn", combinations, X) % p == q[:, None, :])
                .all(axis=-1)
                .any(axis=1)
            )
            np.testing.assert_array_equal(known, spans)


def test_retrieval():
    """In distribution it is near the optimum, outside near 1/p."""
    data = ic.InContextData.make(29, 16, 64, 0.8, generator(0, "split"), "random")
    rng = np.random.default_rng(0)
    for tasks, low, high in ((data.id_tasks, 0.95, 1.0), (data.ood_tasks, 0.0, 0.12)):
        w = tasks[rng.integers(0, len(tasks), 600)]
        X, q = rng.integers(0, 29, (600, 5, 2)), rng.integers(0, 29, (600, 2))
        answers, known = ic.retrieval(29, X, np.einsum("rkn,rn->rk", X, w) % 29, q, data.id_tasks)
        assert low <= ic.solver_accuracy(29, answers, known, (q * w).sum(axis=1) % 29) <= high


def test_phases():
    assert ic.phase(0.99, 0.2, 0.1, 0.1) == "i.d. memorization"
    assert ic.phase(0.99, 0.9, 0.1, 0.1) == "i.d. generalization"
    assert ic.phase(0.99, 0.2, 0.9, 0.1) == "o.o.d. memorization"
    assert ic.phase(0.99, 0.9, 0.9, 0.9) == "o.o.d. generalization"
    assert ic.phase(0.3, 0.9, 0.9, 0.9) == "untrained"
