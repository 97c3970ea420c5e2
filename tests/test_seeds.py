"""Several seeds at once: a member is the solo run of its seed, and quartiles know what was never
reached."""

import json

import _seeds
import grok_addition
import grok_polynomials
import numpy as np
import pytest

from tinygrok.engine.device import get_device
from tinygrok.engine.errors import InputError

CPU = get_device("cpu", threads=1)
TINY = ["--p", "13", "--width", "20", "--steps", "20", "--log-every", "10", "--no-plot"]


def test_a_quantile_is_the_value_of_a_network():
    assert _seeds.quartiles([4.0, 1.0, 3.0, 2.0]).tolist() == [1, 2, 3]
    assert _seeds.quartiles([5.0]).tolist() == [5, 5, 5]
    table = np.array([[1.0, np.nan, 3.0], [np.inf, 2.0, np.inf]])
    assert _seeds.quartiles(table, axis=1).T.tolist() == [[1, 1, 3], [2, np.inf, np.inf]]
    assert np.isnan(_seeds.quartiles([np.nan, np.nan])).all()


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([10, 20, 30, 40], [10, 20, 30]),
        ([10, None, 30, None], [10, 30, None]),
        ([10, None, None, None], [10, None, None]),
        ([None, None], [None, None, None]),
        ([None], [None, None, None]),
        ([None, 20, 10], [10, 20, None]),
        ([10, 20, None, None], [10, 20, None]),  # half is not more than half
        ([*range(10, 250, 10), None], [70, 130, 190]),  # 25 networks
    ],
)
def test_what_never_came_counts_as_the_largest(steps, expected):
    assert _seeds.quartiles_of_steps(steps) == expected


def test_summary_counts_what_was_never_reached():
    steps = [(10, 50), (20, None), (10, None), (30, 60)]
    outcomes = []
    for train, test in steps:
        outcomes.append({"step_train_99": train, "step_test_99": test, "ipr_mean": None})
    found = _seeds.summary(outcomes)
    assert found["step_test_99_by_seed"] == [50, None, None, 60]
    assert found["step_test_99_never"] == 2
    assert found["step_test_99_quartiles"] == [50, 60, None]
    assert found["delay_quartiles"] == [30, 40, None]
    assert "ipr_mean_quartiles" not in found
    assert _seeds.shown(found, 100) == {
        "step_train_99": "10 (10 to 20), never: 0",
        "step_test_99": "60 (50 to > 100), never: 2",
        "delay": "40 (30 to never), never: 2",
    }
    json.dumps(found)


def test_a_delay_is_censored_where_a_network_memorised_and_never_grokked():
    """It counts as longer than all others; one that never memorised is left out, not counted."""
    steps = [(10, 50), (10, 60), (10, None), (20, None), (None, None), (None, 70)]
    outcomes = [{"step_train_99": train, "step_test_99": test} for train, test in steps]
    found = _seeds.summary(outcomes)
    assert found["delay_quartiles"] == [40, 50, None]
    assert found["delay_never"] == 2
    assert found["step_train_99_never"] == 2
    assert found["step_test_99_never"] == 3
    row = _seeds.median_row(outcomes)
    assert (row["delay"], row["delay_quartiles"]) == (50, [40, 50, None])
    none = _seeds.summary(outcomes[4:])
    assert "delay_quartiles" not in none
    assert set(_seeds.shown(none, 100)) == {"step_train_99", "step_test_99"}
    assert np.isnan(_seeds.median_row(outcomes[4:])["delay"])


@pytest.mark.parametrize("more", [[], ["--batch-size", "16", "--dropout", "0.3"]])
def test_a_member_is_the_solo_run_of_its_seed(more):
    flags = [*TINY, "--init-scale", "1.5", "--loss", "mse", *more]
    together = grok_addition.build(grok_addition.arguments([*flags, "--seeds", "3"]), CPU)
    together.fit(20, log_every=10)
    for e, history in enumerate(_seeds.histories(together)):
        alone = grok_addition.build(grok_addition.arguments([*flags, "--seed", str(e)]), CPU)
        alone.fit(20, log_every=10)
        for name, x in alone.params.to_host().items():
            np.testing.assert_array_equal(together.params.to_host(e)[name], x)
        for name, column in alone.history.items():
            np.testing.assert_array_equal(history[name], column, err_msg=name)


def test_memory_of_all_seeds_is_counted():
    args = grok_addition.arguments(["--p", "1000", "--width", "20000", "--seeds", "1000"])
    with pytest.raises(InputError, match="GB of memory"):
        grok_addition.build(args, CPU)


def test_polynomials_of_several_seeds_are_those_of_each():
    tiny = ["--p", "7", "--width", "12", "--steps", "10", "--log-every", "5"]
    args = grok_polynomials.arguments([*tiny, "--seeds", "2"])
    tasks = grok_polynomials.tasks_of(7)
    both = grok_polynomials.build(args, CPU, tasks)
    both.fit(10, log_every=5)
    for seed in range(2):
        own = grok_polynomials.arguments([*tiny, "--seed", str(seed)])
        alone = grok_polynomials.build(own, CPU, tasks)
        alone.fit(10, log_every=5)
        members = slice(seed * len(tasks), (seed + 1) * len(tasks))
        for name, x in alone.params.to_host().items():
            np.testing.assert_array_equal(both.params.to_host()[name][members], x)
        for name in ("train_loss", "test_accuracy", "explained"):
            np.testing.assert_array_equal(
                np.array(both.history[name])[:, members], alone.history[name]
            )
        iprs = np.array(both.history["ipr_product"])[:, seed]
        np.testing.assert_array_equal(iprs, alone.history["ipr_product"])
    rows = grok_polynomials.measured(both, tasks, args)
    product = rows["n1*n2"]
    assert product["test_accuracy"] == product["test_accuracy_quartiles"][1]
    assert product["step_test_99_never"] == 2
    assert product["step_test_99"] is None


def test_a_curve_of_one_seed_has_no_band_and_what_never_came_leaves_a_gap():
    figure = pytest.importorskip("matplotlib.figure").Figure()
    from _figures_seeds import band

    one, two = figure.subplots(1, 2)
    band(one, [0, 1], [[3.0], [4.0]])
    assert one.lines[0].get_ydata().ravel().tolist() == [3, 4]
    assert not one.collections
    band(two, [0, 1, 2], [[1.0, 2.0], [3.0, np.inf], [np.inf, np.inf]])
    assert two.lines[0].get_ydata().tolist() == [1, 3, np.inf]
    assert len(two.collections) == 1
    figure.canvas.draw()
    assert np.isfinite(two.get_ylim()).all()
