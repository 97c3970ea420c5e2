"""What the figures of trained two-layer networks show."""

import _figures_corrupted_labels as corrupted_labels
import numpy as np
import pytest
from helpers import small_run

import tinygrok as tg
from tinygrok.analytic.addition import addition_weights
from tinygrok.plots import modular_polynomials as plots
from tinygrok.plots import style
from tinygrok.probes.fourier import mean_known, neuron_ipr
from tinygrok.tasks.groups import dihedral
from tinygrok.training.tables import Training, mean_ipr

PRODUCT = tg.TASKS["multiplication"]


@pytest.fixture
def drawn(monkeypatch):
    """Figures that were saved, as objects; nothing is written."""
    figures = []
    monkeypatch.setattr(plots, "save", lambda fig, path: figures.append(fig))
    return figures


@pytest.mark.parametrize("task", [tg.addition(11), PRODUCT(11)], ids=["sum", "product"])
def test_mean_ipr_is_recorded_at_every_measurement(task, host_dev):
    run = Training.on_task(tg.TwoLayerNet(11, 12), task, device=host_dev)
    run.extra = mean_ipr
    first = run.params.to_host()
    run.fit(20)
    for weights, seen in ((first, 0), (run.params.to_host(), -1)):
        assert run.history["ipr_mean"][seen] == mean_known(neuron_ipr(weights, task.wave_order))
    assert len(run.history["ipr_mean"]) == len(run.history["step"])
    for name, x in first.items():
        np.testing.assert_array_equal(run.first[name], x)


def test_groups_have_no_ipr_and_an_honest_figure(host_dev, drawn):
    run = Training.on_task(tg.TwoLayerNet(8, 12), dihedral(8), device=host_dev)
    run.extra = mean_ipr
    run.fit(4, 2)
    assert "ipr_mean" not in run.history
    run.plot("x.png")
    (fig,) = drawn
    assert "as they stand" in fig.subfigs[1].legends[0].get_title().get_text()
    assert [ax.get_xlabel() for ax in fig.subfigs[1].axes] == ["element n or q"] * 3


def test_a_neuron_is_unwound_to_one_period():
    """Dots of a written neuron lie on the line of its wave, which turns once; U1, U2 and W have
    frequencies 2 f, 3 f and f where the task is 2 n1 + 3 n2."""
    p = 23
    weights = addition_weights(tg.addition(p, (2, 3)), 5 * 6, "exact")
    rows = plots.neuron_rows(weights, np.arange(p))
    chosen = plots.clearest(rows, 3)
    assert len({int(plots.dominant(rows[-1][k])) for k in chosen}) == 3
    ax = style.figure(3, 3).subplots()
    plots._neuron(ax, chosen[0], [x[chosen[0]] for x in rows], np.arange(p))
    waves, dots = ax.lines[::2], ax.lines[1::2]
    assert len(dots) == 3
    for wave, dot in zip(waves, dots, strict=True):
        expected = np.interp(dot.get_xdata(), *wave.get_data())
        np.testing.assert_allclose(dot.get_ydata(), expected, atol=2e-3 * np.abs(expected).max())
        crossings = np.diff(np.sign(wave.get_ydata())) != 0
        assert crossings.sum() == 2


def test_waves_of_half_the_circle_or_none_are_not_chosen():
    """A sign that alternates and a constant have IPR 1, but there is no period to see."""
    n = np.arange(12)
    W = np.array([(-1.0) ** n, np.ones(12), np.cos(2 * np.pi * 5 * n / 12)])
    assert plots.clearest([W, W, W], 3)[0] == 2
    assert plots.dominant(W[2]) == 5


@pytest.mark.parametrize("terms", [1, 3])
def test_other_numbers_of_terms_and_runs_without_an_order(terms, host_dev, drawn):
    run = small_run(host_dev, terms=terms)
    run.plot("x.png")
    run.order = np.arange(11)
    run.plot("x.png")
    for fig in drawn:
        assert len(fig.subfigs[1].legends[0].get_texts()) == terms + 1


def test_four_terms_have_the_panels_of_the_paper(host_dev, drawn):
    """Losses; accuracies with the mean IPR on an axis of its own; IPR at the start and at the end.
    The five rows of a neuron are told apart by colour and by marker."""
    run = Training.on_task(tg.TwoLayerNet(5, 12, terms=4), tg.addition(5, terms=4), device=host_dev)
    run.extra = mean_ipr
    run.fit(4, 2)
    run.plot("x.png")
    top, middle, bottom = drawn[0].subfigs
    loss, accuracy = top.axes
    assert (loss.get_ylabel(), accuracy.get_ylabel()) == ("mse loss", "accuracy")
    assert accuracy.child_axes[0].get_ylabel() == "mean IPR of the neurons"
    names = [text.get_text() for text in bottom.axes[2].get_legend().get_texts()]
    assert [name.partition(",")[0] for name in names] == ["at the start", "after 4 steps"]
    dots = middle.axes[0].lines[1::2]
    looks = {(dot.get_marker(), dot.get_color()) for dot in dots}
    assert len(looks) == len({marker for marker, _ in looks}) == 5


def test_the_title_says_what_is_seen(host_dev):
    history = {"step": [0, 5, 10, 15], "ipr_mean": [0.1, 0.1, 0.2, 0.3]}
    history["train_accuracy"] = [0, 1, 1, 1]
    history["test_accuracy"] = [0, 0, 0.5, 1]
    ax = style.figure(3, 3).subplots()
    plots._delay(ax, history, 97)
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert ax.get_title() == "memorised at step 5, understood at step 15"
    assert names == ["train", "test", "delay: 10 steps", "chance, 1/97", "mean IPR"]
    ax.clear()
    plots._delay(ax, history | {"test_accuracy": [0, 0, 0.5, 0.9]}, 97)
    assert ax.get_title() == "memorised at step 5, not understood"


def test_pictures_are_small_and_keep_their_colors(tmp_path):
    """A palette: white stays white, a line keeps its colour to a few levels."""
    from matplotlib.colors import to_rgb
    from PIL import Image

    fig = style.figure(4, 3)
    ax = fig.subplots()
    ax.plot([0, 1], [0, 1], color=plots.TEST, lw=5)
    style.image(ax, np.random.default_rng(0).random((9, 9)), {"cmap": "viridis"})
    style.save(fig, tmp_path / "x.png")
    picture = Image.open(tmp_path / "x.png")
    assert picture.mode == "P"
    pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert (pixels[0, 0] == 255).all()
    blue = np.round(np.multiply(to_rgb(plots.TEST), 255))
    assert np.abs(pixels - blue).max(axis=-1).min() <= 8


@pytest.mark.parametrize(("points", "contours"), [(1, 0), (3, 0), (5, 1)])
def test_diagrams_stay_within_0_and_1(points, contours, monkeypatch):
    """Cells of a coarse grid reach beyond, the axes do not; three points have no contour."""
    figures = []
    monkeypatch.setattr(corrupted_labels, "save", lambda fig, path: figures.append(fig))
    axis = np.linspace(0.1, 0.9, points)
    test = np.outer(axis, 1 - axis) * 1.2
    grid = {"phase": np.zeros((points, points), int), "train": test, "test": test}
    corrupted_labels.diagram({"weight decay 0": grid}, axis, axis, "x.png")
    for ax in figures[0].axes[:3]:
        for low, high in (ax.get_xlim(), ax.get_ylim()):
            assert 0 <= low < high <= 1
        assert len(ax.collections) == contours


def test_no_legend_covers_the_curves_of_corrupted_labels(monkeypatch):
    """Legends stand above the axes; the filter names its networks once each."""
    figures = []
    monkeypatch.setattr(corrupted_labels, "save", lambda fig, path: figures.append(fig))
    steps = [0, 10, 100]
    names = [f"{split}_{x}" for split in corrupted_labels.SPLITS for x in ("accuracy", "loss")]
    names += [f"{x}_{name}" for name in ("U1", "U2", "W") for x in ("ipr", "norm")]
    history = {name: [0.1, 0.5, 0.9] for name in (*names, "gradient_share", "filtered_test")}
    phases = ["Confusion", "Memorization", "Coexistence"]
    corrupted_labels.training(history | {"step": steps}, phases, "x.png")
    fig = figures[0]
    fig.draw_without_rendering()
    for ax in (fig.axes[0], fig.axes[2]):
        assert ax.get_legend().get_window_extent().y0 > ax.get_window_extent().y1
    curves = {split: np.ones((2, 4)) for split in corrupted_labels.SPLITS}
    known = {"G test": np.ones((1, 5)), "R corrupted": np.zeros((1, 5))}
    networks = dict.fromkeys(("trained", "initial weights", "random labels"), known)
    ipr = {"initial": np.array([0.1, np.nan]), "final": np.array([0.1, 0.9])}
    pruned = dict.fromkeys(("IPR, lowest first", "IPR, highest first", "chance"), curves)
    corrupted_labels.neurons(ipr, pruned, np.linspace(0, 1, 4), networks, None, "x.png")
    filt = figures[1].axes[3]
    assert [text.get_text() for text in filt.get_legend().get_texts()] == list(networks)
    assert len({line.get_color() for line in filt.lines}) == 3
