"""Corrupted labels: the rules, the phases, the measurements, and the paper's claims at small
size."""

import _corrupted_orders as orders
import numpy as np
import pytest

from tinygrok.engine.device import get_device
from tinygrok.engine.errors import InputError
from tinygrok.engine.rng import generator
from tinygrok.probes import neurons
from tinygrok.probes.fourier import neuron_ipr
from tinygrok.probes.phases import first_step, phase, phase_history, two_stages
from tinygrok.tasks import TASKS
from tinygrok.tasks.corruption import corrupt
from tinygrok.tasks.modular import TaskError, addition
from tinygrok.training.ensembles import (
    build,
    complete,
    gradient_shares,
    hidden_units,
    member_history,
    outcome,
    packs,
    train_pack,
)

TASK = addition(31)
NUMBERS = TASK.split(0.7, generator(0, "split"))[0]
TRUE = TASK.labels(TASK.inputs(NUMBERS))


def corrupted(fraction, rule="uniform", seed=0):
    return corrupt(TASK, NUMBERS, fraction, generator(seed, "corruption"), rule)


# -- corruption ------------------------------------------------------------------------------------


def test_uniform_rule():
    labels, wrong = corrupted(0.4)
    count = int(0.4 * len(NUMBERS))
    assert wrong[:count].all()
    assert not wrong[count:].any()
    assert np.array_equal(labels[count:], TRUE[count:])
    assert set(labels) <= set(range(31))
    many = np.concatenate([corrupted(1.0, seed=s)[0] for s in range(20)])
    kept = (many == np.tile(TRUE, 20)).mean()  # the true label may be drawn
    assert abs(kept - 1 / 31) < 4 * np.sqrt(1 / 31 / len(many))


def test_corruption_is_nested():
    small, large = corrupted(0.2), corrupted(0.6)
    assert (small[1] <= large[1]).all()
    assert np.array_equal(small[0][small[1]], large[0][small[1]])


def test_strict_rule_never_keeps_the_true_label():
    labels, wrong = corrupted(0.5, "strict")
    assert (labels[wrong] != TRUE[wrong]).all()
    assert set(labels) <= set(range(31))
    assert len(np.unique((labels - TRUE)[wrong] % 31)) == 30


def test_symmetric_rule():
    labels, wrong = corrupted(0.5, "symmetric")
    a, b = TASK.inputs(NUMBERS)
    where = {(x, y): i for i, (x, y) in enumerate(zip(a, b, strict=True))}
    pairs = [(i, where[y, x]) for (x, y), i in where.items() if (y, x) in where]
    assert all(wrong[i] == wrong[j] and labels[i] == labels[j] for i, j in pairs)
    for xi in (0.2, 0.5, 0.9):
        assert abs(corrupted(xi, "symmetric")[1].mean() - xi) < 3 / len(NUMBERS)
    assert (corrupted(0.2, "symmetric")[1] <= wrong).all()


def test_labels_of_four_terms():
    """The rules do not ask how many terms there are: in any order they are the same sum."""
    task = addition(5, terms=4)
    numbers = task.split(0.7, generator(0, "split"))[0]
    inputs = task.inputs(numbers)
    true = task.labels(inputs)
    for rule in ("uniform", "strict", "symmetric"):
        labels, wrong = corrupt(task, numbers, 0.4, generator(0, "corruption"), rule)
        assert abs(wrong.mean() - 0.4) < 0.06
        assert np.array_equal(labels[~wrong], true[~wrong])
        assert rule != "strict" or (labels != true)[wrong].all()
        if rule == "symmetric":
            same = np.ravel_multi_index(tuple(np.sort(inputs, axis=0)), (5,) * 4)
            for group in np.unique(same):
                assert len(set(labels[same == group])) == 1
                assert len(set(wrong[same == group])) == 1


def test_subtraction_rule_and_refusals():
    labels, wrong = corrupted(1.0, "subtraction")
    a, b = TASK.inputs(NUMBERS)
    assert np.array_equal(labels, (a - b) % 31)
    assert wrong.all()
    assert not corrupted(0.0)[1].any()
    for bad in (lambda: corrupted(1.5), lambda: corrupted(0.1, "loud")):
        with pytest.raises(TaskError):
            bad()


# -- phases ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "test", "best", "xi", "expected"),
    [
        (1.0, 0.99, 1.0, 0.35, "Coexistence"),
        (0.9, 0.9, 0.9, 0.35, "Coexistence"),
        (0.786, 1.0, 1.0, 0.35, "Partial Inversion"),
        (0.654, 1.0, 1.0, 0.35, "Full Inversion"),
        (0.818, 1.0, 1.0, 0.2, "Full Inversion"),
        (1.0, 0.2, 0.2, 0.35, "Memorization"),
        (0.01, 0.01, 0.97, 0.35, "Forgetting"),
        (0.5, 0.3, 0.4, 0.35, "Confusion"),
        (1.0, 1.0, 1.0, 0.05, "Coexistence"),
    ],
)
def test_phases(train, test, best, xi, expected):
    assert phase(train, test, best, xi, 97) == expected


def test_phase_border_at_small_p():
    """Perfect inversion is Full Inversion also where chance hits take up the margin."""
    for p in (5, 11, 23, 97):
        for xi in (0.2, 0.5, 0.9):
            assert (
                phase(1 - xi + xi / p, 1.0, 1.0, xi, p) == "Full Inversion"
                or 1 - xi + xi / p >= 0.9
            )


def test_two_stages():
    steps = [0, 10, 20, 30, 40, 50]
    assert two_stages(steps, [0, 0, 0.5, 0.95, 1, 1], [0, 0.9, 1, 0.8, 0.4, 0.1]) == (30, 40)
    assert two_stages(steps, [0] * 6, [0, 0.9, 1, 1, 1, 1]) == (None, None)
    assert two_stages(steps, [0, 1, 1, 1, 1, 1], [np.nan] * 6) == (10, None)
    assert first_step([1, 2], [False, False]) is None


# -- neurons ---------------------------------------------------------------------------------------


def random_net(p=13, n=20, batch=50):
    rng = np.random.default_rng(0)
    return (
        {"U": rng.standard_normal((2, p, n)), "W": rng.standard_normal((n, p))},
        rng.standard_normal((batch, n)),
        rng,
    )


def test_pruning_curves_equal_direct_evaluation():
    weights, a, rng = random_net()
    labels, mask, order = rng.integers(0, 13, 50), rng.random(50) < 0.5, rng.permutation(20)
    shares = np.array([0.0, 0.35, 0.1, 0.95])
    curve = neurons.pruning_curves(a, weights["W"], order, {"s": (mask, labels)}, shares)["s"]
    for share, value in zip(shares, curve, strict=True):
        left = weights["W"].copy()
        left[order[: round(share * 20)]] = 0
        assert value == ((a @ left).argmax(axis=1) == labels)[mask].mean()


def test_filtered_parts_add_up_and_keep_one_common_frequency():
    weights, _, _ = random_net()
    kept, rest = neurons.filtered(weights, 1)
    for name in weights:
        np.testing.assert_allclose(kept[name] + rest[name], weights[name], atol=1e-12)
    np.testing.assert_allclose(neuron_ipr(kept), 1)
    spectra = [np.abs(np.fft.rfft(x, axis=0)) for x in (*kept["U"], kept["W"].T)]
    assert all(np.array_equal(s.argmax(axis=0), spectra[0].argmax(axis=0)) for s in spectra)
    whole = neurons.filtered(weights, 6)[0]  # all frequencies but 0
    np.testing.assert_allclose(
        whole["W"], weights["W"] - weights["W"].mean(axis=1, keepdims=True), atol=1e-12
    )


def test_multiplication_is_seen_along_the_discrete_logarithm():
    """A network for products has waves along powers of a primitive root; as numbers stand it looks
    like noise."""
    run = build(
        get_device("cpu", "float32"),
        [CLAIM | {"task": "multiplication", "xi": 0.0, "weight_decay": 5.0, "steps": 300}],
    )
    run.fit(300, 100)
    weights, order = run.params.to_host(0), TASKS["multiplication"](59).wave_order
    assert TASKS["addition"](59).wave_order is None
    assert sorted(order) == list(range(1, 59))
    assert run.history["test_accuracy"][-1] > 0.99
    assert neuron_ipr(weights, order).mean() > 0.6 > 0.15 > neuron_ipr(weights).mean()
    kept, rest = neurons.filtered(weights, 1, order)
    np.testing.assert_allclose(kept["U"] + rest["U"], weights["U"], atol=1e-6)
    mask, labels = run.evaluation.splits["test"][0][0], run.evaluation.labels["true"]
    mask = mask & (run.evaluation.inputs > 0).all(axis=0)  # zeros are not on the circle
    z = hidden_units(run, 0, kept) @ kept["W"]
    assert (z.argmax(axis=1) == labels)[mask].mean() > 0.9


def test_scores_contributions_and_orders():
    weights, a, rng = random_net()
    weights["norm.gain"] = rng.uniform(0.1, 1, 20)
    labels = rng.integers(0, 13, 50)
    for kind in neurons.SCORES:
        assert neurons.scores(weights, kind).shape == (20,)
    with pytest.raises(InputError, match="ipr"):
        neurons.scores(weights, "size")
    del weights["norm.gain"]
    with pytest.raises(InputError, match="BatchNorm"):
        neurons.scores(weights, "gain")
    periodic, other = orders.contributions(a, weights["W"], labels, neuron_ipr(weights), 0.2)
    z = a @ weights["W"]
    np.testing.assert_allclose(periodic + other, z[np.arange(50), labels] - z.mean(axis=1))
    order = orders.margin_order(a, weights["W"], np.ones(50, bool), labels)
    worth = [
        (
            (a[:, [k]] @ (weights["W"] - weights["W"].mean(axis=1, keepdims=True))[[k]])[
                np.arange(50), labels
            ]
        ).mean()
        for k in order
    ]
    assert (np.diff(worth) >= 0).all()
    assert np.isclose(orders.rank_correlation(np.arange(9.0), np.arange(9.0) ** 3), 1)


def test_memory_times():
    right = np.array([[0, 0, 1, 0], [1, 0, 1, 0], [1, 1, 0, 0], [0, 1, 0, 0]], bool)
    memorised, released = neurons.memory_times([0, 10, 20, 30], right)
    np.testing.assert_array_equal(memorised, [10, 20, 0, np.nan])
    np.testing.assert_array_equal(released, [30, np.nan, 20, np.nan])


# -- ensembles -------------------------------------------------------------------------------------

SMALL = {"p": 13, "width": 10, "steps": 20, "log_every": 5}


@pytest.mark.parametrize(
    "more",
    [{}, {"batch_size": 16}, {"batchnorm": True, "batch_size": 16}, {"task": "multiplication"}],
)
def test_a_member_of_a_pack_equals_the_network_alone(dev, more):
    """Own fraction, corruption, rule, decay, dropout, learning rate and seed."""
    points = [
        SMALL | more,
        SMALL
        | more
        | {
            "alpha": 0.7,
            "xi": 0.1,
            "rule": "strict",
            "weight_decay": 2.0,
            "dropout": 0.3,
            "lr": 0.02,
            "seed": 4,
        },
        SMALL | more | {"alpha": 0.4, "xi": 0.9, "seed": 1},
    ]
    together = build(dev, points)
    together.fit(20, 5)
    for e, point in enumerate(points):
        alone = build(dev, [point])
        alone.fit(20, 5)
        for name, x in alone.params.to_host(0).items():
            ours = together.params.to_host(e)[name]
            if dev.kind == "cpu":
                np.testing.assert_array_equal(ours, x)
            else:
                np.testing.assert_allclose(ours, x, rtol=2e-3, atol=1e-4)
        a, b = member_history(together.history, e), member_history(alone.history, 0)
        np.testing.assert_allclose(a["train_loss"], b["train_loss"], rtol=1e-3)


def test_bookkeeping(host_dev):
    run = build(host_dev, [SMALL | {"xi": 0.5}, SMALL | {"xi": 0.0, "alpha": 0.8}])
    for e, (inputs, labels) in enumerate(run.data):
        splits = {name: (mask[e], which) for name, (mask, which) in run.evaluation.splits.items()}
        train, test = splits["train"][0], splits["test"][0]
        assert train.sum() == len(labels)
        assert (train ^ test).all()
        assert (splits["corrupted"][0] | splits["uncorrupted"][0] == train).all()
        assert splits["corrupted"][0].sum() == int([0.5, 0.0][e] * len(labels))
        table = dict(
            zip(map(tuple, run.evaluation.inputs.T), run.evaluation.labels["given"][e], strict=True)
        )
        assert all(table[tuple(n)] == label for n, label in zip(inputs.T, labels, strict=True))
    assert np.isnan(run.measure()["corrupted_accuracy"][1])  # nothing was corrupted
    shares = gradient_shares(run)
    assert 0.2 < shares[0] < 0.8
    assert shares[1] == 0
    weights = run.params.to_host(0)
    z = hidden_units(run, 0, weights) @ weights["W"]
    np.testing.assert_array_equal(z.argmax(axis=1), run.evaluation.predicted[0])


def test_packs():
    points = [{"seed": s, "p": p} for p in (5, 7) for s in range(10)]
    cut = packs(points, 8)
    assert [len(pack) for pack in cut] == [8, 2, 8, 2]
    assert all(len({q["p"] for q in pack}) == 1 for pack in cut)
    with pytest.raises(InputError, match="wieght"):
        complete({"wieght": 1})
    with pytest.raises(InputError, match="share"):
        build(get_device("cpu"), [{"p": 5}, {"p": 7}])


# -- the paper's claims, p = 59, N = 200, alpha 0.5, xi 0.2, 600 steps -----------------------------

CLAIM = {"p": 59, "width": 200, "alpha": 0.5, "xi": 0.2, "steps": 600, "log_every": 20}


@pytest.fixture(scope="module")
def trained():
    """Without regularisation, with decay 5 and 15, with dropout, clean, and on random labels: one
    pack."""
    points = [
        CLAIM,
        CLAIM | {"weight_decay": 5.0},
        CLAIM | {"weight_decay": 15.0},
        CLAIM | {"dropout": 0.6},
    ]
    run = build(get_device("cpu", "float32"), points)
    run.fit(600, 20)
    return run, [outcome(member_history(run.history, e), point) for e, point in enumerate(points)]


@pytest.mark.slow
def test_coexistence_without_regularisation(trained):
    r = trained[1][0]
    assert 0.94 < r["train_accuracy"] < 0.975
    assert r["test_accuracy"] > 0.98
    assert 0.70 < r["corrupted_accuracy"] < 0.88
    assert r["phase"] == "Coexistence"
    assert r["step_unlearn"] is None


@pytest.mark.slow
def test_inversion_with_regularisation(trained):
    decay5, decay15, dropout = trained[1][1:]
    assert 0.81 < decay5["train_accuracy"] < 0.85
    assert decay5["test_accuracy"] > 0.995
    assert decay5["corrupted_accuracy"] < 0.25
    assert decay15["train_accuracy"] < 0.82
    assert decay15["test_accuracy"] > 0.99
    assert decay15["corrupted_accuracy"] < 0.08
    assert dropout["test_accuracy"] > 0.99
    assert dropout["corrupted_accuracy"] < 0.15
    for r in (decay5, decay15, dropout):
        assert r["phase"] == "Full Inversion"
        assert r["step_grok"] <= r["step_unlearn"] <= 200
    assert abs(decay15["train_accuracy"] - (1 - 0.2 + 0.2 / 59)) < 0.02


@pytest.mark.slow
def test_pruning_separates_memory_from_rule(trained):
    run = trained[0]
    weights, evaluation = run.params.to_host(0), run.evaluation
    a = hidden_units(run, 0, weights)
    splits = {
        k: (m[0], np.broadcast_to(evaluation.labels[which], m.shape)[0])
        for k, (m, which) in evaluation.splits.items()
    }
    order = np.argsort(neuron_ipr(weights))
    low = neurons.pruning_curves(a, weights["W"], order, splits, np.array([0.5]))
    high = neurons.pruning_curves(a, weights["W"], order[::-1], splits, np.array([0.3]))
    assert low["test"][0] >= 0.98
    assert low["corrupted"][0] < 0.10
    assert high["test"][0] < 0.45
    assert high["corrupted"][0] > 0.7
    assert neurons.neurons_needed(a, weights["W"], order, *splits["test"]) < 100


@pytest.mark.slow
def test_phase_history(trained):
    names = phase_history(member_history(trained[0].history, 2), 0.2, 59)
    assert names[0] == "Confusion"
    assert names[-1] == "Full Inversion"
    assert "Memorization" in names


@pytest.mark.slow
def test_filtration_sees_the_rule_in_a_memoriser():
    """N = 400 without regularisation memorises (test below 0.2), and yet one frequency a neuron
    answers the test set."""
    run = build(get_device("cpu", "float32"), [CLAIM | {"width": 400}])
    initial = run.params.to_host(0)
    run.fit(800, 100)
    r = outcome(member_history(run.history, 0), CLAIM)
    assert r["phase"] == "Memorization"
    assert r["test_accuracy"] < 0.2
    mask, labels = run.evaluation.splits["test"][0][0], run.evaluation.labels["true"]
    for weights, holds in (
        (run.params.to_host(0), lambda x: x > 0.99),
        (initial, lambda x: x < 0.05),
    ):
        kept = neurons.filtered(weights)[0]
        z = hidden_units(run, 0, kept) @ kept["W"]
        assert holds((z.argmax(axis=1) == labels)[mask].mean())


@pytest.mark.slow
def test_batchnorm_scale_follows_ipr():
    point = CLAIM | {
        "batchnorm": True,
        "batch_size": 64,
        "lr": 0.005,
        "steps": 1500,
        "log_every": 250,
    }
    run = build(get_device("cpu", "float32"), [point])
    run.fit(1500, 250)
    weights = run.params.to_host(0)
    assert outcome(member_history(run.history, 0), CLAIM)["test_accuracy"] > 0.98
    assert orders.rank_correlation(neuron_ipr(weights), np.abs(weights["norm.gain"])) > 0.6


def test_a_diverging_member_does_not_take_the_others_along():
    points = [SMALL, SMALL | {"weight_decay": 1e6}, SMALL | {"seed": 1}]
    results = train_pack(points, "cpu", threads=1)
    assert results[1]["phase"] == "Diverged"
    assert results[1]["test_accuracy"] is None
    assert [results[0], results[2]] == train_pack([points[0], points[2]], "cpu", threads=1)
    assert set(results[0]) == set(results[1])


def test_clean_grokking():
    """xi 0, decay 5, 150 steps: test 100 %, mean IPR above 0.85."""
    run = build(get_device("cpu", "float32"), [CLAIM | {"xi": 0.0, "weight_decay": 5.0}])
    run.fit(150, 50)
    assert run.history["test_accuracy"][-1] == 1
    assert neuron_ipr(run.params.to_host(0)).mean() > 0.85


@pytest.mark.slow
def test_figure_1_at_p_97():
    """xi 0.35 without regularisation and with decay 5 and 15: train and test within three points of
    the paper's."""
    points = [{"weight_decay": 5.0, "steps": 500}, {"weight_decay": 15.0, "steps": 500}]
    run = build(get_device("cpu", "float32"), points)
    run.fit(500, 100)
    for e, (train, test) in enumerate([(0.786, 1.0), (0.654, 1.0)]):
        assert abs(run.history["train_accuracy"][-1][e] - train) < 0.03
        assert abs(run.history["test_accuracy"][-1][e] - test) < 0.03


def test_train_pack_is_a_pure_function():
    points = [SMALL, SMALL | {"seed": 1}]
    first, second = (train_pack(points, "cpu", threads=t) for t in (1, 2))
    assert first == second
    assert set(first[0]) >= {"phase", "phase_half", "test_accuracy", "step_grok"}
