"""The in-context task: selections, pools, sequences, and the reference solvers against the exact
formulas."""

import itertools
import json
import zlib
from collections import Counter
from pathlib import Path

import _in_context_setup as setup
import in_context
import numpy as np
import pytest
from _in_context_rows import RULES, Lines, MixedRows
from _moving_shares import MovingShares

from tinygrok import cli
from tinygrok.engine.errors import InputError
from tinygrok.engine.rng import generator
from tinygrok.tasks import in_context as ic
from tinygrok.tasks.modular import TaskError, all_pairs
from tinygrok.training.checkpoint import load_training, load_weights, save_training

RESULTS = Path(in_context.__file__).parent / "results"


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


# -- rows by rule --


def mixed(end, start=None, ramp=(0, 1), p=7, shots=5, tasks=8, alpha=0.8, **fields):
    """A data set whose rows are of several rules."""
    data = ic.InContextData.make(p, shots, tasks, alpha, generator(0, "split"))
    shares = MovingShares(RULES, start or end, end, ramp)
    return MixedRows(**vars(data) | fields, shares=shares)


def is_direction_free(p, row):
    """Whether no pair of a row is a multiple of another."""
    multiples = [{(c * x % p, c * y % p) for c in range(p)} for x, y in row]
    return not any(
        tuple(row[i]) in multiples[j] for i, j in itertools.permutations(range(len(row)), 2)
    )


def obeys(rule, p, row):
    """Whether a row is of a rule, by its definition."""
    if rule == "direction-free":
        return is_direction_free(p, row)
    if rule in ("line", "two-lines"):
        lines = {inverse_ratio(p, x) for x in map(tuple, row)}
        return [0, 0] not in row and len(lines) <= (1 if rule == "line" else 2)
    on_x = [x > 0 and y == 0 for x, y in row]
    on_y = [x == 0 and y > 0 for x, y in row]
    if rule == "sums":
        return are_steps_and_sums(row)
    both = any(on_x[:4]) and any(on_y[:4]) and [0, 0] not in row
    return both and (rule == "steps" or sum(on_x) == sum(on_y) == 1)


def are_steps_and_sums(row):
    """(x, 0), (0, y), (x, y) in turn, as far as the row goes."""
    for i, (x, y) in enumerate(row):
        place = i % 3
        if place == 0 and not (x > 0 and y == 0):
            return False
        if place == 1 and not (x == 0 and y > 0):
            return False
        if place == 2 and [x, y] != [row[i - 2][0], row[i - 1][1]]:
            return False
    return True


def inverse_ratio(p, pair):
    """The multiples of a pair: its direction."""
    return frozenset((c * pair[0] % p, c * pair[1] % p) for c in range(p))


@pytest.mark.parametrize("rule", RULES[1:])
@pytest.mark.parametrize(
    ("p", "shots", "alpha"), [(7, 8, 0.8), (11, 9, 0.7), (5, 2, 0.5), (7, 20, 0.7)]
)
def test_rows_obey_their_rule(rule, p, shots, alpha):
    """In the train and in the test pool."""
    data = mixed({"plain": 1.0}, p=p, shots=shots, alpha=alpha)
    for pool in (data.train_pool, data.test_pool):
        lines = Lines(p, pool)
        if rule not in lines.rules(shots):
            continue
        pairs = lines.draw(200, shots, generator(0, "batches"), rule)
        assert pairs.shape == (200, shots, 2)
        inside = {tuple(x) for x in pool.tolist()}
        for row in pairs.tolist():
            assert {tuple(x) for x in row} <= inside
            assert obeys(rule, p, row)


def test_two_lines_take_turns_at_random():
    """Each of the two holds half of a row, and every pair of directions comes."""
    pairs = Lines(5, all_pairs(5)).draw(3000, 9, generator(0, "batches"), "two-lines")
    found = [Counter(inverse_ratio(5, x) for x in map(tuple, row)) for row in pairs.tolist()]
    of_two = [counts for counts in found if len(counts) == 2]
    assert len(of_two) / len(found) == pytest.approx(1 - 2**-8, abs=0.01)
    assert len({frozenset(counts) for counts in of_two}) == 6 * 5 / 2
    assert np.mean([min(counts.values()) for counts in of_two]) == pytest.approx(3.27, abs=0.1)


def test_ratio_matching_answers_lines_and_no_direction_free_row():
    lines = Lines(7, all_pairs(7))
    for rule, answered in (("line", True), ("direction-free", False)):
        pairs = lines.draw(200, 8, generator(0, "batches"), rule)
        for k in range(1, 8):
            z = pairs[:, :k] @ [2, 3] % 7
            known = ic.ratio_matching(7, pairs[:, :k], z, pairs[:, k])[1]
            assert (known == answered).all()


@pytest.mark.parametrize(("shown", "share"), [(1.0, 2 / 3), (0.5, 1 / 2), (0.0, 0.0)])
def test_steps_stand_before_their_sum(shown, share):
    """Of n shown steps and their sums 2 shown/(2 shown + 1) are steps."""
    lines = Lines(7, all_pairs(7))
    pairs = lines.draw(4000, 20, generator(0, "batches"), "steps", shown)
    on_axes = (pairs == 0).any(axis=2)
    assert on_axes[:, 4:].mean() == pytest.approx(share, abs=0.05)  # rows are cut
    for row in pairs.tolist():
        for i in range(4, 18):
            x, y = row[i]
            later = [pair for pair in row[i + 1 : i + 3] if 0 not in pair]
            if y == 0:
                assert later[0][0] == x
            if x == 0:
                assert later[0][1] == y


@pytest.mark.parametrize(("step", "shown"), [(1, 1.0), (30, 0.5), (40, 0.0), (99, 0.0)])
def test_steps_fade(step, shown):
    data = mixed({"steps": 1.0}, fade=(20, 40), shots=20)
    pairs = data.train_rows(300, generator(0, "batches"), step)
    expected = data.lines.draw(300, 20, generator(0, "batches"), "steps", shown)
    assert (pairs == 0).any(axis=2).mean() == pytest.approx(
        (expected == 0).any(axis=2).mean(), abs=0.02
    )
    with pytest.raises(TaskError, match="steps fade from a step to a later one"):
        mixed({"steps": 1.0}, fade=(20, 20))


def test_steps_that_the_pool_lacks_are_left_out():
    pool = np.array([[1, 0], [0, 2], [3, 4], [5, 6], [0, 4]])
    pairs = Lines(7, pool).draw(500, 9, generator(0, "batches"), "steps")
    found = {tuple(pair) for pair in pairs.reshape(-1, 2).tolist()}
    assert found == {tuple(pair) for pair in pool.tolist()}


def test_every_row_is_equally_likely():
    """Two inputs of different directions mod 3: 8 ways for the first, 6 for the second."""
    lines = Lines(3, all_pairs(3))
    pairs = lines.draw(48_000, 2, np.random.default_rng(0), "direction-free")
    rows, counts = np.unique(pairs.reshape(-1, 4), axis=0, return_counts=True)
    assert len(rows) == 48
    assert abs(counts - 1000).max() < 5 * 1000**0.5


def test_directions_are_equally_likely_whatever_the_pool_has_of_them():
    pool = np.array([[1, 1], [2, 2], [3, 3], [1, 0], [0, 2], [0, 0]])
    lines = Lines(5, pool)
    pairs = lines.draw(30_000, 1, np.random.default_rng(0), "direction-free")[:, 0]
    found, counts = np.unique(pairs, axis=0, return_counts=True)
    expected = [10_000, 10_000, 10_000 / 3, 10_000 / 3, 10_000 / 3]
    assert found.tolist() == [[0, 2], [1, 0], [1, 1], [2, 2], [3, 3]]
    assert (abs(counts - expected) < 5 * np.sqrt(expected)).all()


def test_places_of_the_axes_are_equally_likely():
    lines = Lines(7, all_pairs(7))
    pairs = lines.draw(12_000, 6, np.random.default_rng(0), "axis")
    on_x = (pairs[..., 1] == 0).argmax(axis=1)
    on_y = (pairs[..., 0] == 0).argmax(axis=1)
    places, counts = np.unique(4 * on_x + on_y, return_counts=True)
    assert len(places) == 12
    assert abs(counts - 1000).max() < 5 * 1000**0.5


@pytest.mark.parametrize(
    ("rule", "settings"),
    [
        ("direction-free", {"shots": 9}),
        ("line", {"train_pool": np.array([[0, 0]])}),
        ("two-lines", {"train_pool": np.array([[1, 1], [2, 2], [0, 0]])}),
        ("steps", {"train_pool": np.array([[1, 0], [2, 0], [0, 1]])}),
        ("axis", {"train_pool": np.array([[1, 1], [1, 2], [1, 3], [1, 4], [2, 0], [0, 0]])}),
        ("sums", {"train_pool": np.array([[1, 1], [1, 0], [0, 2], [2, 0], [0, 0]])}),
        ("direction-free", {"train_pool": np.array([[1, 1], [2, 2], [0, 0]])}),
    ],
)
def test_pools_without_such_rows_are_refused(rule, settings):
    with pytest.raises(TaskError, match=f"no {rule} row of . shots: choose") as error:
        mixed({"plain": 0.5, rule: 0.5}, **settings)
    assert "\n" not in str(error.value)
    mixed({"plain": 1.0, rule: 0.0}, **settings)  # what has no share need not exist


@pytest.mark.parametrize(
    ("step", "shares"),
    [
        (1, [0, 0, 0, 0, 1, 0, 0]),
        (150, [0.25, 0.15, 0, 0, 0.6, 0, 0]),
        (200, [0.5, 0.3, 0, 0, 0.2, 0, 0]),
        (9999, [0.5, 0.3, 0, 0, 0.2, 0, 0]),
    ],
)
def test_shares_of_rows_move(step, shares):
    """Of 200 rows each has a rule by the shares of the step: first the plain ones, then the others,
    and these obey their rules."""
    end = {"plain": 0.5, "direction-free": 0.3, "axis": 0.2}
    data = mixed(end, {"axis": 1.0}, ramp=(100, 200), shots=6)
    assert data.shares(step) == pytest.approx(shares)
    tokens = data.batch(8 * 200, generator(step, "batches"), step)
    rows = tokens.reshape(8, 200, 6, 3)[0, ..., :2]
    rng = generator(step, "batches")
    pairs = data.draw_pairs(data.train_pool, 200, rng)
    plain, free, *_ = rng.multinomial(200, shares)
    np.testing.assert_array_equal(rows[:plain], pairs[:plain])
    assert all(obeys("direction-free", 7, row) for row in rows[plain : plain + free].tolist())
    assert all(obeys("axis", 7, row) for row in rows[plain + free :].tolist())


def test_rows_of_the_recorded_runs_stay():
    """Shares of lines, steps and plain rows: the batch of the recorded runs."""
    data = mixed({"line": 0.1, "steps": 0.65, "plain": 0.25})
    tokens = data.batch(80, generator(3, "batches"), 5)
    assert zlib.crc32(tokens.astype(np.int64).tobytes()) == 1452948587
    sets = data.sets(generator(3, "probes"))
    assert zlib.crc32(sets["ood_steps"].astype(np.int64).tobytes()) == 3373868174


def test_of_plain_rows_alone_nothing_changes():
    """Batches and sets are those of before there were rules, bit for bit."""
    for settings in ({}, {"replace": False}, {"p": 11, "shots": 14, "tasks": 24}):
        data = mixed({"plain": 1.0}, **settings)
        pairs = data.draw_pairs(data.train_pool, 3, generator(1, "batches"))
        before = data.sequences(data.id_tasks, pairs)
        count = 3 * len(data.id_tasks)
        after = data.batch(count, generator(1, "batches"), 7)
        np.testing.assert_array_equal(after, before)
        rng = generator(1, "probes")
        sets = data.sets(generator(1, "probes"))
        for name, expected in ic.InContextData.sets(data, rng).items():
            np.testing.assert_array_equal(sets[name], expected)


@pytest.mark.parametrize(
    ("count", "some", "each"), [(5, None, 5), (8, None, 8), (16, None, 8), (12, 4, 4), (6, 6, 6)]
)
def test_tasks_of_a_step(count, some, each):
    """Different tasks, each with the same rows of inputs; over many steps all of them."""
    data = mixed({"plain": 0.5, "direction-free": 0.5}, tasks_per_step=some)
    asked = []
    for step in range(800):
        triples = data.batch(count, generator(step, "batches"), step).reshape(each, -1, 5, 3)
        assert (triples[..., :2] == triples[:1, ..., :2]).all()
        z = np.einsum("tc,rsc->trs", data.id_tasks, triples[0, ..., :2]) % 7
        if step < 50:
            of_task = (z[:, None] == triples[None, ..., 2]).all(axis=(2, 3))
            assert (of_task.sum(axis=0) >= 1).all()
        order = np.arange(8)
        if each < 8:
            order = generator(step, "batches").permutation(8)[:each]
        np.testing.assert_array_equal(z[order], triples[..., 2])
        asked.append(order)
    counts = np.bincount(np.concatenate(asked))
    assert abs(counts - 100 * each).max() < 5 * (100 * each) ** 0.5


@pytest.mark.parametrize(("count", "some"), [(9, None), (9, 4), (3, 4), (0, None), (0, 4)])
def test_batches_that_tasks_do_not_divide(count, some):
    data = mixed({"plain": 1.0}, tasks_per_step=some)
    with pytest.raises(TaskError, match="is no multiple of its . tasks"):
        data.batch(count, generator(0, "batches"))


def test_sets_by_rule_are_of_held_out_tasks_and_train_inputs():
    data = mixed({"plain": 0.5, "line": 0.5}, shots=6)
    sets = data.sets(generator(0, "probes"))
    assert list(sets) == [*setup.SETS, *setup.ROWS.values()]
    pool = {tuple(x) for x in data.train_pool.tolist()}
    for name in setup.ROWS.values():
        triples = sets[name].reshape(len(data.ood_tasks), -1, 6, 3)
        assert triples.shape[0] * triples.shape[1] >= 500
        z = np.einsum("tc,trsc->trs", data.ood_tasks, triples[..., :2]) % 7
        np.testing.assert_array_equal(z, triples[..., 2])
        for row in triples[0, ..., :2].tolist():
            assert {tuple(x) for x in row} <= pool
    without = [name for name in sets if name != "ood_direction_free"]  # 8 directions mod 7
    assert list(mixed({"line": 1.0}, shots=9).sets(generator(0, "probes"))) == without
    assert list(mixed({"plain": 1.0}, shots=6).sets(generator(0, "probes"))) == [*setup.SETS]


# -- what examples/in_context.py measures --


def example(words, host_dev):
    args = in_context.arguments(f"--p 7 --depth 1 --width 8 --tasks 32 {words}".split())
    return args, *in_context.build(args, host_dev)


def test_uncovered_queries(host_dev):
    """Those with 8 examples or more, none of them on the line of the query, each counted here."""
    args, data, solved, run = example("--shots 11 --batch 32", host_dev)
    tokens = data.sets(generator(0, "probes"))["ood_train"]
    predicted = run.predict(run.sets["ood_train"])[0]
    right = []
    for row, answers in zip(tokens.reshape(-1, 11, 3).tolist(), predicted, strict=True):
        for k in (8, 9, 10):
            x, y, z = row[k]
            examples = [(u, v) for u, v, _ in row[:k] if (u, v) != (0, 0)]
            matches = [(x * v - y * u) % 7 == 0 for u, v in examples]
            if (x, y) != (0, 0) and not any(matches):
                right.append(answers[k] == z)
    row = run.measure()
    results = setup.without_a_match({k: np.asarray(v) for k, v in run.history.items()}, solved)
    assert results["uncovered_queries"] == len(right) == solved["uncovered"].sum()
    assert row["uncovered"] == np.mean(right) == results["uncovered"] == results["uncovered_best"]
    share = np.mean(right)
    rows = len(tokens) // len(data.ood_tasks)
    answered = predicted == run.sets["ood_train"].targets
    error = setup.clustered_error(answered, solved["uncovered"], rows)
    assert results["uncovered_error"] == row["uncovered_error"] == error
    assert f" late {100 * share:.0f}" in in_context.progress(row)


def test_fresh_rows(host_dev, monkeypatch):
    """Other rows than the measured ones; a network that is always right, and one that is not where
    a or b is 0."""
    args, data, _, run = example("--shots 11 --batch 32", host_dev)
    monkeypatch.setattr(setup, "FRESH", 20 * len(data.ood_tasks))
    drawn = []

    def predicted(batch):
        drawn.append(batch.targets)
        zero = ~np.repeat(data.ood_tasks.all(axis=1), 20)[:, None]
        return (batch.targets + zero) % 7, None

    monkeypatch.setattr(run, "predict", predicted)
    found = setup.on_fresh_rows(run, data, args.seed)
    assert found["fresh_rows"] == 20
    assert found["fresh_a_b"] == 1
    assert (
        found["fresh"] == found["fresh_matched"] == pytest.approx(data.ood_tasks.all(axis=1).mean())
    )
    assert 1 / 7 < found["fresh_elimination"] < found["fresh_elimination_a_b"] < 1
    measured = data.sets(generator(args.seed, "probes"))["ood_train"][:, 2::3]
    seen = {tuple(row) for row in measured.tolist()}
    assert not any(
        tuple(row) in seen for row in drawn[0][data.ood_tasks.all(axis=1).argmax() :][:20]
    )


def test_a_run_that_starts_from_the_weights_of_another(tmp_path, host_dev):
    """Under other rows; refused for other tasks or inputs, for another network, and for no file."""
    first = "--quick --steps 3 --measure-every 3 --save-seconds 0 --threads 1 --no-plot --out"
    assert in_context.main([*first.split(), str(tmp_path / "a")]) is None
    file = tmp_path / "a/checkpoint.npz"
    args = in_context.arguments(f"--quick --rows plain=0.5 line=0.5 --weights {file}".split())
    _, _, run = in_context.build(args, host_dev)
    _, trained = load_weights(file)
    for name, weight in run.params.to_host().items():
        np.testing.assert_array_equal(weight, trained[name])
    for flags, said in {
        "--seed 1": "trained with --seed 0, not 1: what is held out must be the same",
        "--alpha 0.5": "trained with --alpha 0.6, not 0.5",
        "--width 32": "shape",
        "--init-std 0.1": "--init-std does not go with --weights",
        f"--weights {tmp_path}/none.npz": "none.npz",
    }.items():
        words = ["--quick", "--weights", str(file), *flags.split(), "--out", str(tmp_path / "b")]
        with pytest.raises(InputError, match=said) as error:
            in_context.main(words)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "b").exists()


def test_a_run_that_starts_from_the_weights_of_another_modulus(tmp_path, host_dev):
    """Its tasks are others, so that any may be held out; the vocabulary has to hold both."""
    tiny = "--quick --width 16 --steps 2 --measure-every 2 --threads 1 --no-plot --vocab 7"
    assert in_context.main([*tiny.split(), "--out", str(tmp_path / "a")]) is None
    file = tmp_path / "a/checkpoint.npz"
    words = [*tiny.split(), "--p", "7", "--batch", "48", "--weights", str(file)]
    args = in_context.arguments(words)
    _, _, run = in_context.build(args, host_dev)
    _, trained = load_weights(file)
    for name, weight in run.params.to_host().items():
        np.testing.assert_array_equal(weight, trained[name])
    other = in_context.arguments([*words, "--vocab", "8"])
    with pytest.raises(InputError, match="shape"):
        in_context.build(other, host_dev)


def test_going_on_needs_no_file_of_first_weights(tmp_path):
    """Its weights are in the checkpoint."""
    words = "--quick --batch 16 --width 16 --measure-every 2 --threads 1 --no-plot --steps"
    first = [*words.split(), "2", "--out"]
    assert in_context.main([*first, str(tmp_path / "a")]) is None
    file = tmp_path / "a/checkpoint.npz"
    again = ["--weights", str(file), "--out", str(tmp_path / "b")]
    assert in_context.main([*words.split(), "2", *again]) is None
    file.unlink()
    longer = [*words.split(), "4", *again]
    with pytest.raises(InputError, match=r"checkpoint\.npz"):
        in_context.main([*longer[:-1], str(tmp_path / "c")])
    assert in_context.main([*longer, "--resume"]) is None
    log = (tmp_path / "b/log.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in log] == ["step", "0", "2", "4"]


def test_the_progress_line_fits_a_terminal(capsys):
    """At most 100 columns with the longest numbers, the step and the rate around them."""
    row = {f"{name}_accuracy": np.ones(3) for name in setup.SETS}
    row |= {f"{name}_late": 1.0 for name in setup.ROWS.values()} | {"uncovered": 1.0}
    progress = cli.Progress(12_000, every=0)
    progress.began -= 9000
    progress(11_500, in_context.progress(row))
    line = capsys.readouterr().out.strip()
    assert "id 100/100 ood 100/100 late 100/100/100/100/100/100" in line
    assert len(line) <= 100
    assert len(in_context.legend(setup.ROWS.values())) <= 100


def test_retrieval_is_never_right_where_ratio_matching_has_no_answer(host_dev):
    """Two tasks agree on one line through 0, or only at 0: the pre-training task that agrees with
    an example is wrong off the line of this example."""
    for seed in range(3):
        _, _, solved, _ = example(f"--shots 12 --batch 32 --seed {seed}", host_dev)
        assert solved["uncovered"].sum() > 100
        assert not solved["retrieved"][solved["uncovered"]].any()
    history = {"uncovered": np.array([0.5]), "uncovered_error": np.array([0.1])}
    results = setup.without_a_match(history | {"step": np.array([0])}, solved)
    assert results["uncovered_retrieval"] == 0


def test_where_no_query_is_uncovered():
    """Not a number, and no warning."""
    solved = {"uncovered": np.zeros((2, 3), bool), "retrieved": np.ones((2, 3), bool)}
    solved["elimination"] = np.nan
    history = {"uncovered": np.array([np.nan, np.nan]), "step": np.array([0, 5])}
    history["uncovered_error"] = history["uncovered"]
    results = setup.without_a_match(history, solved)
    assert results["uncovered_queries"] == 0
    assert np.isnan(results["uncovered_error"])
    assert np.isnan(results["uncovered_retrieval"])
    assert np.isnan(results["uncovered_best"])


def test_the_error_of_queries_that_depend_on_each_other_by_row():
    """Of rows that are right or wrong as a whole it is that of as many single queries; of
    independent queries that of all of them."""
    rng = generator(0, "probes")
    tasks, rows, shots = 8, 100, 3
    asked = np.ones((tasks * rows, shots), bool)
    by_row = np.arange(rows) < 60
    whole = np.broadcast_to(by_row[:, None], (tasks, rows, shots)).reshape(asked.shape)
    error = setup.clustered_error(whole, asked, rows)
    assert error == pytest.approx((0.6 * 0.4 / (rows - 1)) ** 0.5)
    assert setup.clustered_error(whole, asked & (rng.random(asked.shape) < 0.5), rows) > error / 2
    found = [setup.clustered_error(rng.random(asked.shape) < 0.6, asked, rows) for _ in range(50)]
    assert np.mean(found) == pytest.approx((0.6 * 0.4 / asked.size) ** 0.5, rel=0.1)
    assert np.isnan(setup.clustered_error(whole[:1], asked[:1], 1))


def test_a_learner_that_excludes_answers():
    """By hand mod 5, and against the definition."""
    # Of (1, 2): z is not 2. Of (1, 3): z/x is neither 2 nor 4, and z/3 not 4/2: 0 or 3 is left.
    row = np.array([[1, 0, 2, 1, 2, 4, 1, 3, 0]])
    np.testing.assert_allclose(setup.elimination(5, row), [[1 / 5, 1 / 4, 1 / 2]])
    data = mixed({"plain": 1.0}, p=7, shots=8, alpha=0.96)
    tokens = data.sequences(data.ood_tasks, data.lines.draw(20, 8, generator(0, "batches"), "axis"))
    chances = setup.elimination(7, tokens)
    for row, found in zip(tokens.reshape(-1, 8, 3).tolist(), chances, strict=True):
        for k, (x, y, z) in enumerate(row):
            left = set(range(7))
            for u, v, w in row[:k]:
                left -= {c for c in left if x and u and (c * u - w * x) % 7 == 0}
                left -= {c for c in left if y and v and (c * v - w * y) % 7 == 0}
            assert found[k] == pytest.approx((z in left) / max(len(left), 1))


def test_elimination_never_rules_out_the_truth_of_a_query_without_a_match():
    """Unless a or b is 0: then the same quotient comes in every direction."""
    data = mixed({"plain": 1.0}, p=7, shots=8, alpha=0.96)
    tasks = np.array([[2, 3], [6, 1]])
    tokens = data.sequences(
        tasks, data.lines.draw(50, 8, generator(0, "batches"), "direction-free")
    )
    assert (setup.elimination(7, tokens) > 0).all()


def test_resumed_with_shares_that_move_and_muon(host_dev, tmp_path):
    """To the same bits; weights, moments and what was measured."""
    words = "--shots 5 --batch 12 --tasks-per-step 4 --start axis=1 --ramp 2 9 --optimizer muon"
    words += " --rows plain=0.5 direction-free=0.5 --hold 0.5 --steps 12"
    _, _, _, whole = example(words, host_dev)
    whole.fit(12, 3)
    _, _, _, part = example(words, host_dev)
    part.fit(7, 3)
    save_training(tmp_path / "part.npz", part, {})
    _, _, _, later = example(words, host_dev)
    load_training(tmp_path / "part.npz", later, {})
    later.fit(12, 3)
    np.testing.assert_array_equal(later.params.flat, whole.params.flat)
    for name, arena in whole.optimizer.state.items():
        np.testing.assert_array_equal(later.optimizer.state[name].flat, arena.flat)
    measured = [np.array(run.history["ood_axis_loss"])[-1] for run in (whole, later)]
    np.testing.assert_array_equal(*measured)


def test_checkpoint_of_before_rows_had_rules(host_dev, tmp_path):
    """What was not measured then is nan in its rows, and the run goes on."""
    words = "--shots 5 --batch 32 --rows plain=0.5 line=0.5"
    _, _, solved, run = example(words, host_dev)
    run.fit(2, 1)
    for name in [name for name in run.history if name == "uncovered" or "axis" in name]:
        del run.history[name]
    save_training(tmp_path / "old.npz", run, {})
    _, _, _, later = example(words, host_dev)
    load_training(tmp_path / "old.npz", later, {})
    setup.fill_history(later)
    later.fit(3, 1)
    history = {name: np.asarray(values) for name, values in later.history.items()}
    assert {name: len(values) for name, values in history.items() if len(values) != 4} == {}
    assert np.isnan(history["ood_axis_accuracy"]).all(axis=1).tolist() == [True] * 3 + [False]
    assert np.isnan(history["uncovered"]).tolist() == [True] * 3 + [False]
    results, log, _ = setup.measured(history, solved)
    assert results["uncovered_best_step"] == 3
    assert len(log["ood_axis"]) == 4


def test_muon_moves_the_matrices_of_the_blocks(host_dev):
    _, _, _, run = example("--shots 5 --batch 32 --optimizer muon --matrix-lr 0.3", host_dev)
    assert run.optimizer.matrix_lr == 0.3
    inside = {name for name in run.model.shapes if name.startswith("blocks.")}
    assert run.optimizer.matrices == {n for n in inside if len(run.model.shapes[n]) == 2}
    assert len(run.optimizer.matrices) >= 4


@pytest.mark.parametrize(
    "words",
    [
        "--rows plain",
        "--rows plain=x",
        "--rows plain=0.5",
        "--rows plain=nan",
        "--rows free=1",
        "--start axis=2 plain=-1",
        "--ramp 5 5",
        "--tasks-per-step 37",
        "--tasks-per-step 5 --batch 12",
        "--batch 71",
    ],
)
def test_flags_that_are_refused(words):
    with pytest.raises(InputError) as error:
        in_context.arguments(words.split())
    assert "\n" not in str(error.value)


def test_rows_that_the_inputs_do_not_have_are_refused(host_dev):
    with pytest.raises(InputError, match="no direction-free row of 12 shots"):
        example("--start direction-free=1 --batch 32", host_dev)


def test_the_preset_sums_is_what_was_recorded():
    """The recorded run gave its settings flag by flag, before --weights and --kernels."""
    recorded = json.loads((RESULTS / "in_context_sums.json").read_text())["config"]
    preset = cli.config(in_context.arguments(["--preset", "sums"]))
    assert preset.pop("weights") is None
    assert preset.pop("kernels") == "numpy"
    assert preset | {"preset": "small"} == recorded


@pytest.mark.parametrize(
    ("preset", "name"),
    [
        ("lines-11", "in_context_lines"),
        ("sums-11", "in_context_sums_11"),
        ("free-11", "in_context_free_11"),
        ("sums", "in_context_sums"),
        ("free", "in_context_free"),
    ],
)
def test_presets_are_the_settings_of_recorded_runs(preset, name):
    args = vars(in_context.arguments(["--preset", preset]))
    text = Path(in_context.__file__).with_name("results").joinpath(f"{name}.json").read_text()
    recorded = json.loads(text)["config"]
    for key in recorded.keys() - {"preset", "weights", "kernels"}:
        assert args[key] == recorded[key], key
