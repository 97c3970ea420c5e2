"""What the examples measure of neurons: pruning with losses, who memorises, secondary peaks."""

import _figures_neuron_dynamics
import _figures_pruning_phases
import _figures_width_scan as plots
import _neuron_classes as classes
import _neuron_spectra as spectra
import _seeds
import neuron_dynamics
import numpy as np
import pruning_phases
import pytest
import width_scan

from tinygrok.analytic.addition import addition_weights
from tinygrok.engine.device import get_device
from tinygrok.probes import neurons
from tinygrok.tasks.modular import addition

TASK = addition(23)
INPUTS = TASK.inputs(np.arange(TASK.size))
LABELS = TASK.labels(INPUTS)


def hidden(weights):
    return (weights["U"][0][INPUTS[0]] + weights["U"][1][INPUTS[1]]) ** 2


def random_weights(n=40):
    rng = np.random.default_rng(0)
    return {"U": rng.standard_normal((2, 23, n)), "W": rng.standard_normal((n, 23))}


# -- pruning ---------------------------------------------------------------------------------------


def test_accuracies_and_losses_of_pruning_are_those_of_the_pruned_network():
    weights = random_weights()
    a = hidden(weights)
    rng = np.random.default_rng(1)
    order = rng.permutation(40)
    mask = rng.random(len(a)) < 0.5
    splits = dict.fromkeys(pruning_phases.SPLITS, (mask, LABELS))
    found = pruning_phases.curves(a, weights["W"], order, splits)
    one_hot = np.eye(23)[LABELS]
    for i in (0, 7, 38):
        left = weights["W"].copy()
        left[order[: round(pruning_phases.SHARES[i] * 40)]] = 0
        z = a @ left
        right = z.argmax(axis=1) == LABELS
        assert found["test_accuracy"][i] == right[mask].mean()
        np.testing.assert_allclose(found["test_loss"][i], ((z - one_hot)[mask] ** 2).mean())


def test_a_point_for_every_phase_and_seed():
    args = pruning_phases.arguments(["--seeds", "2", "--phases", "Forgetting", "Coexistence"])
    points = pruning_phases.points(args)
    assert [point["weight_decay"] for point in points] == [20, 20, 0, 0]
    groups = pruning_phases.by_phase(args, ["a", "b", "c", "d"])
    assert groups == {"Forgetting": ["a", "b"], "Coexistence": ["c", "d"]}


def test_a_column_says_how_many_networks_are_in_its_phase():
    title = _figures_pruning_phases.reached
    assert title(["Forgetting"] * 2, "Forgetting") == "Forgetting"
    found = ["Full Inversion", "Partial Inversion", "Full Inversion"]
    assert title(found, "Partial Inversion") == "Partial Inversion\n(1 of 3 networks)"


# -- the width scan --------------------------------------------------------------------------------


def test_the_exponent_of_a_power_law():
    widths = [100, 200, 400]
    table = {}
    for width in widths:
        table[23, width] = {"needed": [round(10 * width**0.5), 2 * width, None]}
    low, middle, high = width_scan.exponent(table, 23, widths)
    assert abs(low - 0.5) < 0.01
    assert abs(high - 1) < 1e-9
    assert middle == low
    assert width_scan.exponent(table, 23, [100]) is None
    assert len(width_scan.complete(table, 23, widths)) == 2


def test_a_flat_law_is_said_to_be_flat():
    results = {"p = 23: exponent": [0.05, 0.1, 0.2], "p = 23: exponent_seeds": 7}
    said = width_scan.law_in_words(23, [100, 200, 800], results)
    assert "b = 0.10 (0.05 to 0.20), of the 7 seeds" in said
    assert "nearly flat: 8 times the width takes 1.2 times the neurons" in said
    results["p = 23: exponent"] = [0.5, 0.5, 0.5]
    said = width_scan.law_in_words(23, [100, 400], results)
    assert "flat" not in said
    assert "4 times the width takes 2 times the neurons" in said


def test_networks_that_never_get_there_pull_the_prunable_share_down():
    args = width_scan.arguments(["--p", "23", "--widths", "100", "--seeds", "4"])
    shares = {"test_accuracy": 0.1, "corrupted_accuracy": 1.0, "low_ipr_share": 1.0}
    outcomes = [shares | {"needed": needed} for needed in (20, 30, None, None)]
    table = width_scan.cells(width_scan.points(args), outcomes)
    results = width_scan.summary(args, table)
    (three,) = results["p = 23: prunable"]
    assert three == [-np.inf, -np.inf, 0.7]
    assert _seeds.three_in_words(three, ".2f", "-") == "- (- to 0.70)"


def test_cells_count_what_was_never_enough():
    points = [{"p": 23, "width": 100, "seed": seed} for seed in range(2)]
    table = width_scan.cells(points, [{"needed": 25}, {"needed": None}])
    columns = table[23, 100]
    assert columns["needed"] == [25, None]
    assert columns["prunable"] == [0.75, -np.inf]


def test_a_scan_in_which_nothing_was_enough_has_a_figure(tmp_path):
    args = width_scan.arguments(["--p", "23", "--widths", "8", "16", "--seeds", "2"])
    points = width_scan.points(args)
    shares = {"test_accuracy": 0.1, "corrupted_accuracy": 1.0, "low_ipr_share": 1.0}
    table = width_scan.cells(points, [shares | {"needed": None}] * len(points))
    results = width_scan.summary(args, table)
    assert results["p = 23: never"] == [2, 2]
    assert results["p = 23: needed"] == [[None] * 3] * 2
    assert results["p = 23: exponent"] is None
    plots.widths(args, table, results, tmp_path / "x.png")
    assert (tmp_path / "x.png").exists()


# -- classes of neurons ----------------------------------------------------------------------------


def test_who_adds_to_the_margins():
    """A part that is the same everywhere; one that only varies; a small one; a harmful one."""
    rng = np.random.default_rng(0)
    n = 400
    noise = 5 * rng.standard_normal(n)
    noise -= noise.mean() - 0.1
    shares = np.stack([np.ones(n), noise, np.full(n, 0.01), -np.ones(n)], axis=1)
    assert classes.adds(shares).tolist() == [True, False, False, False]
    assert not classes.adds(shares[:1]).any()


def test_classes_and_flows():
    """Neuron 0 memorises, then generalises; 1 memorises throughout; 2 does nothing; 3 is periodic
    and helps nobody."""
    low, high = 0.1, 0.9
    history = {
        "step": np.array([0, 10, 20]),
        "neuron_ipr": np.array([[low] * 4, [low, low, low, high], [high, low, low, high]]),
        "memorises": np.array([[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]], dtype=bool),
        "understands": np.array([[0, 0, 0, 0], [0, 0, 1, 0], [1, 0, 1, 0]], dtype=bool),
    }
    kinds = classes.classes(history)
    assert kinds.tolist() == [[0, 0, 0, 0], [1, 1, 0, 0], [2, 1, 0, 0]]
    assert classes.counts(kinds).tolist() == [[4, 0, 0], [2, 2, 0], [2, 1, 1]]
    weights = random_weights(4)
    found = classes.flows(history["step"], kinds, weights, weights, None)
    assert found["step_peak"] == 10
    assert found["memorising_at_peak"] == 2
    assert found["at_end"] == [2, 1, 1]
    assert found["memorising_become"] == [0, 0.5, 0.5]
    assert found["generalising_were"] == [0, 1, 0]
    assert found["all_become"] == [0.5, 0.25, 0.25]
    assert found["all_were"] == [0.5, 0.5, 0]
    assert found["same_frequency_as_at_start"] == 1
    assert found["step_generalises"] == 20
    assert found["step_memorises"] == 10
    assert found["step_stops_memorising"] == 20  # of neurons 0 and 1: the second never stops
    only = np.where(np.arange(4) == 1, kinds, 0)
    last = classes.flows(history["step"], only, weights, weights, None)
    assert last["step_stops_memorising"] is None
    none = classes.flows(history["step"], 0 * kinds, weights, weights, None)
    assert none["step_memorises"] is None
    assert none["same_frequency_as_at_start"] is None
    means = _figures_neuron_dynamics.mean_flows([found, none])
    np.testing.assert_array_equal(means[[0, 2]], [[0, 0.5, 0.5], [0, 1, 0]])  # and not half of it
    np.testing.assert_array_equal(means[1], [0.75, 0.125, 0.125])
    assert not _figures_neuron_dynamics.mean_flows([none])[[0, 2]].any()
    both = classes.summary([found, none])
    assert both["at_end"][2] == [0, 0, 1]
    assert both["step_generalises"] == [20, 20, None]


# -- spectra ---------------------------------------------------------------------------------------


def test_pure_waves_have_no_secondary_peaks():
    weights = addition_weights(TASK)
    found = spectra.unwound(weights)
    for name in ("U", "W"):
        assert abs(found[name][1] - 1) < 0.02  # the constant neuron has all in frequency 0
        assert found[name][2:].max() < 1e-12
    parts = spectra.parts(weights, 0)
    assert list(parts) == list(spectra.PARTS)
    z = {name: hidden(part) @ part["W"] for name, part in parts.items()}
    assert spectra.unwanted(z["whole"], LABELS) < 1e-12
    assert spectra.unwanted(3 * z["whole"] + 1, LABELS) < 1e-12
    for name in ("no others", "others, shuffled"):  # every neuron is a wave
        np.testing.assert_array_equal(z[name], z["whole"])


def test_a_third_harmonic_is_seen_and_taken_out():
    n = np.arange(23)
    wave = np.cos(2 * np.pi * 5 * n / 23)
    third = 0.3 * np.cos(2 * np.pi * 15 * n / 23)
    weights = {"U": np.stack([(wave + third)[:, None]] * 2), "W": wave[None]}
    found = spectra.unwound(weights)
    assert abs(found["U"][3] - 0.09 / 1.09) < 1e-12
    assert abs(found["U"][1] - 1 / 1.09) < 1e-12
    parts = spectra.parts(weights, 0)
    np.testing.assert_allclose(parts["no secondary peaks"]["U"][0, :, 0], wave, atol=1e-12)
    moved = parts["secondary, random"]["U"][0, :, 0]
    assert np.abs(moved - weights["U"][0, :, 0]).max() > 0.01
    before, after = (np.abs(np.fft.rfft(x)) for x in (weights["U"][0, :, 0], moved))
    np.testing.assert_allclose(after, before, atol=1e-9)
    assert spectra.power_of_others(weights) == 0


def test_noise_is_unwanted():
    z = np.random.default_rng(0).standard_normal((len(LABELS), 23))
    assert spectra.unwanted(z, LABELS) > 0.97
    assert np.isnan(spectra.unwanted(0 * z, LABELS))


@pytest.mark.parametrize("flags", [[], ["--corruption", "0.001"]])
def test_networks_are_measured_decay_by_decay(flags):
    """Also without a single corrupted label."""
    tiny = ["--p", "7", "--width", "6", "--steps", "4", "--log-every", "2", "--seeds", "2", *flags]
    args = neuron_dynamics.arguments([*tiny, "--decays", "0", "5"])
    run = neuron_dynamics.build(args, get_device("cpu", threads=1), None)
    run.fit(4, log_every=2)
    results = neuron_dynamics.Networks(run, args, None).results()
    assert list(results) == ["decay 0", "decay 5"]
    for row in results.values():
        assert np.sum(row["at_end"], axis=0)[1] <= 6
        assert len(row["power U"]) == spectra.MULTIPLES + 1
    assert neurons.margin_shares(np.ones((3, 2)), np.eye(2), np.zeros(3, int)).shape == (3, 2)
