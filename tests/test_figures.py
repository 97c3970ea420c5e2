"""Figures say what is seen: what is drawn, the legend, and files that a page can carry."""

import numpy as np
import pytest

pytest.importorskip("matplotlib")
import _figures_autoinit as autoinit
import _figures_in_context as in_context
import _figures_lcg as lcg
from _autoinit_training import Compared
from PIL import Image

from tinygrok.plots import style


@pytest.fixture
def drawn(monkeypatch):
    """Figures that were saved."""
    figures = []
    for module in (autoinit, in_context, lcg):
        monkeypatch.setattr(module, "save", lambda fig, path: figures.append(fig))
    return figures


def names(ax):
    return ax.get_legend_handles_labels()[1]


def history(steps, shots):
    rng = np.random.default_rng(0)
    sets = {f"{name}_accuracy": rng.random((steps, shots)) for name in in_context.SETS}
    return {"step": np.arange(steps) * 50, "ood_covered": rng.random(steps), **sets}


@pytest.mark.parametrize(
    ("best", "said", "curves"),
    [(0, "before training", 1), (2, "step 100", 2), (3, "step 150", 1)],
    ids=["never better", "best in between", "best at the end"],
)
def test_training_shows_a_trained_network(drawn, best, said, curves):
    """Held-out tasks by shot: the best checkpoint where it is a trained one, and the final one."""
    solved = {name: np.ones(4) for name in in_context.SOLVERS}
    in_context.training(history(4, 4), best, solved, 5, None)
    left, right = drawn[0].axes
    assert f"best on held-out: {said}" in names(left)
    held_out = [name for name in names(right) if name.startswith("held-out")]
    assert len(held_out) == curves
    assert held_out[-1] == "held-out, step 150 (final)"
    assert "chance, 1/5" in names(left)
    assert "chance, 1/5" in names(right)


def test_grids_name_the_task(drawn):
    maps = np.zeros((2, 5, 5), dtype=bool)
    in_context.grids([1, 2], maps, maps, maps, "task (2, 1), held out (o.o.d.)", None)
    assert "held out (o.o.d.)" in drawn[0].get_suptitle()


def test_scaling_states_the_law_with_its_error(drawn):
    fits = {"a": ([4.0, 8.0, 16.0], 0.5, 0.1), "b": ([4.0, np.nan, 5.0], None, None)}
    fits["c"] = ([3.0, 3.0, 3.0], 0.0, 0.2)
    curves = {m: np.linspace(0, 1, 8) for m in (16, 64, 256)}
    lcg.scaling(curves, [16, 64, 256], fits, None)
    right = drawn[0].axes[1]
    assert names(right)[:2] == ["a: exponent 0.50 +- 0.10", "b"]
    fitted = next(
        line for line in right.lines if len(line.get_xdata()) == 3 and line.get_ls() == "-"
    )
    np.testing.assert_allclose(fitted.get_ydata(), [4, 8, 16])


def test_autoinit_names_its_noise_and_what_diverged(drawn):
    J = {init: (0.0, np.ones(3)) for init in autoinit.INITS}
    run = {"step": [0, 1], "test_accuracy": [0.1, 0.5]}
    tests = {"off": [None, run], "autoinit": [run, run]}
    tunings = [[8.0, 1.0, 0.1, 0.3], [8.0, 1.0, 0.1, 0.5]]
    autoinit.autoinit(J, tunings, None, tests, ("title", "loss", "2 probes", 10), None)
    left, middle, right = drawn[0].axes
    assert "critical, J = 1" in names(left)
    floor = next(line for line in middle.lines if "2 probes" in str(line.get_label()))
    np.testing.assert_allclose(floor.get_ydata(), 0.4)
    assert names(right) == ["off: 1 of 2 not finite", "autoinit", "chance, 1/10"]


def test_networks_side_by_side_count_those_that_diverged_as_guessing(drawn):
    J = {init: (0.0, np.ones(3)) for init in autoinit.INITS}
    run = {"step": [0, 25, 30], "test_accuracy": [0.1, 0.5, 0.9]}
    histories = {("kaiming", 1, s): None for s in range(3)}
    histories |= {("autoinit", 1, 0): None, ("autoinit", 1, 1): run, ("autoinit", 1, 2): run}
    rates = {"kaiming": 1, "autoinit": 1}
    found = Compared([None] * 3, J, rates, histories, 10)
    autoinit.several({"a": found, "b": found}, {"a": "A", "b": "B"}, 30, None)
    axes = drawn[0].axes
    assert [ax.get_title() for ax in axes[:2]] == ["A", "B"]
    curves = {line.get_label(): line.get_xydata() for line in axes[2].lines}
    np.testing.assert_allclose(curves["kaiming"], [[0, 0.1], [30, 0.1]])
    np.testing.assert_allclose(curves["autoinit"], [[0, 0.1], [25, 0.5], [30, 0.9]])
    assert found.accuracies("autoinit", "test") == [0.1, 0.9, 0.9]


def test_a_file_has_256_colours(tmp_path):
    fig = style.figure(3, 2)
    ax = fig.subplots()
    ax.imshow(np.arange(10_000).reshape(100, 100))
    style.save(fig, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "P"
        assert image.size == (390, 260)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
