"""Training maps and the deep Mixer: what the examples take from theory, and how cells choose."""

import itertools
import json
import math
import signal

import _deep_mixer
import _training_maps
import deep_mixer
import numpy as np
import pytest
import training_maps
from stress_damage import write_images

from tinygrok.criticality.jacobian import Propagation
from tinygrok.criticality.meanfield import MeanField
from tinygrok.engine.device import get_device
from tinygrok.engine.errors import InputError
from tinygrok.tasks.images import Images
from tinygrok.training.images import ImageTraining

SMALL = ["--grid", "3", "--depth", "6", "--width", "20", "--steps", "8", "--trial", "4"]


def stripes(count=60, size=4):
    """Images of horizontal and vertical stripes."""
    labels = np.arange(count) % 2
    across = np.eye(size)[[0, 2] * (size // 2)]
    x = np.where(labels[:, None, None] == 1, across, across.T)[..., None]
    x = x + 0.1 * np.random.default_rng(0).standard_normal(x.shape)
    return Images(x[:40], labels[:40], x[40:], labels[40:])


def point(**changes):
    args = training_maps.arguments([*SMALL, "--norm", "none", "--mu", "0", "--batch", "16"])
    return training_maps.points(args)[0] | changes


# -- flags and points ------------------------------------------------------------------------------


def test_a_point_for_every_cell_of_every_map():
    args = training_maps.arguments([*SMALL, "--norm", "pre", "--mu", "0", "0.5"])
    points = training_maps.points(args)
    assert len(points) == 2 * 3 * 3
    assert [p["mu"] for p in points] == [0.0] * 9 + [0.5] * 9
    assert {p["norm"] for p in points} == {"pre"}
    assert [p["sw2"] for p in points[:3]] == [0.25, 2.625, 5.0]
    assert [p["sb2"] for p in points[:9:3]] == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    "words",
    [
        "--norm none pre act --mu 0 1",
        "--norm none none --mu 1 1",
        "--sw2 3 3",
        "--sb2 2 1",
        "--trial 9",
        "--lr 1 1",
        "--grid 100 --norm none pre act --mu 0",
    ],
)
def test_maps_that_make_no_sense_are_refused(words):
    with pytest.raises(InputError):
        training_maps.arguments([*SMALL, *words.split()])


# -- theory ----------------------------------------------------------------------------------------


def test_the_jacobian_of_a_cell_is_that_of_the_recursion():
    args = training_maps.arguments([*SMALL, "--depth", "9"])
    sw2, sb2 = np.array([0.5, 1.5]), np.array([0.0, 0.2, 1.0])
    found = _training_maps.log10_jacobian(args, "pre", 0.9, sw2, sb2)
    assert found.shape == (3, 2)
    _, chi = MeanField("erf", 1.5, 0.2, 0.9, "pre").propagate(1.2, 9)
    np.testing.assert_allclose(found[1, 1], np.log10(chi).sum())


@pytest.mark.parametrize(
    ("norm", "mu"), [("none", 0.0), ("none", 0.6), ("pre", 0.9), ("post", 1.0)]
)
def test_the_line_is_where_chi_is_one(norm, mu):
    args = training_maps.arguments([*SMALL])
    line = _training_maps.critical_curve(args, norm, mu, np.array([0.0, 2.0]))
    for sw2, sb2 in list(zip(*line, strict=True))[::40]:
        case = MeanField("erf", sw2, max(sb2, 0.0), mu, norm)
        _, chi = case.step(case.fixed_point())
        assert abs(chi - 1) < 2e-3


def test_maps_without_a_line_are_named():
    args = training_maps.arguments([*SMALL])
    for norm, mu in (("pre", 1.0), ("none", 1.0), ("batch", 0.5)):
        assert _training_maps.critical_curve(args, norm, mu, np.array([0.0, 2.0])) is None
    for (*panel, mu), words in {
        ("erf", "pre", 1.0): "critical everywhere",
        ("relu", "act", 1.0): "critical everywhere",
        ("erf", "act", 1.0): "critical nowhere",
        ("erf", "none", 1.0): "critical nowhere",
        ("erf", "batch", 0.5): "chaotic everywhere",
        ("identity", "batch", 0.5): "critical everywhere",
    }.items():
        assert _training_maps.theory_in_words(*panel, mu) == words


def test_relu_has_a_vertical_line():
    args = training_maps.arguments([*SMALL, "--activation", "relu"])
    sw2, sb2 = _training_maps.critical_curve(args, "none", 0.0, np.array([0.0, 2.0]))
    assert sw2.tolist() == [2.0, 2.0]
    assert sb2.tolist() == [0.0, 2.0]


# -- cells -----------------------------------------------------------------------------------------


def test_a_cell_goes_on_with_the_rate_that_learns_best():
    dev = get_device("cpu", threads=1)
    cell = point(sw2=1.5, seed=3, lr=[1e-6, 0.1], steps=40, trial=20)
    found = _training_maps.train_one(cell, stripes(), dev)
    assert found["lr"] == 0.1
    assert found["train_accuracy"] == 1
    alone = _training_maps.train_one(cell | {"lr": [0.1]}, stripes(), dev)
    assert found == alone


def test_of_rates_that_learn_nothing_the_smallest_goes_on():
    dev = get_device("cpu", threads=1)
    cell = point(sw2=0.25, lr=[1e-7, 1e-6], steps=3, trial=2)
    assert _training_maps.train_one(cell, stripes(), dev)["lr"] == 1e-7


def test_where_the_best_rate_diverges_the_next_one_goes_on(monkeypatch):
    dev = get_device("cpu", threads=1)
    usual = _training_maps.trained

    def trained(run, steps):
        late = steps == 40 and run.optimizer.lr == 0.1
        return None if late else usual(run, steps)

    monkeypatch.setattr(_training_maps, "trained", trained)
    cell = point(sw2=1.5, seed=3, lr=[1e-3, 0.1], steps=40, trial=20)
    assert _training_maps.train_one(cell, stripes(), dev)["lr"] == 1e-3


def test_a_cell_whose_every_rate_diverges_is_empty():
    dev = get_device("cpu", threads=1)
    cell = point(activation="relu", sw2=5.0, depth=40, lr=[1e6], steps=40, trial=20)
    found = _training_maps.train_one(cell, stripes(), dev)
    assert set(found.values()) == {None}
    assert {"lr", "train_accuracy", "test_loss"} <= set(found)


def test_a_summary_counts_what_diverged_as_nothing_learnt():
    args = training_maps.arguments([*SMALL, "--norm", "none", "--mu", "0"])
    names = ("lr", "train_accuracy", "test_accuracy", "train_loss", "test_loss")
    outcomes = [dict.fromkeys(names, 0.1 * (i + 1)) for i in range(9)]
    outcomes[8] = dict.fromkeys(names)
    maps = training_maps.maps_of(args, outcomes)
    grid = maps["none", 0.0]
    grid["log10_J"] = np.array([[0.0, 1, 2.1], [-1, -6, 9], [3, 4, np.nan]])
    found = training_maps.summary(maps, 10)
    assert found["half"] == pytest.approx(0.45)
    row = found["norm none, mu 0"]
    assert row["share_that_learns"] == pytest.approx(4 / 9)
    assert row["near"] == [3, pytest.approx(0.2), pytest.approx(0.2)]
    assert row["far"] == [3, pytest.approx(0.5), pytest.approx(0.5)]
    cells = found["norm none, mu 0: cells"]
    assert cells["train_accuracy"][2][2] is None
    assert cells["log10_J"][2][2] is None


# -- the Mixer -------------------------------------------------------------------------------------


def mixer_point(**changes):
    words = "--depth 3 --width 12 --hidden 8 10 --steps 4 --measure-every 2 --batch 8 --lr 0.1"
    args = deep_mixer.arguments(words.split())
    return deep_mixer.points(args, (4, 4, 1))[1.0, 0.1] | changes


# chi of block 5 and of block 20, sigma_w^2 2, GELU: the notes on the paper, section 10.6.
BLOCKS = {1.0: (1.229, 1.059), 0.9: (1.130, 1.078), 0.5: (1.330, 1.330)}


@pytest.mark.parametrize("mu", BLOCKS)
def test_chi_of_a_block(mu):
    halves = list(itertools.islice(_deep_mixer.half_blocks(mixer_point(mu=mu)), 60))
    blocks = np.array(halves[::2]) * np.array(halves[1::2])
    np.testing.assert_allclose(blocks[[5, 20]], BLOCKS[mu], atol=2e-3)


def test_the_expected_jacobian_ends_at_one():
    start = mixer_point(mu=0.5, depth=30)
    J = _deep_mixer.expected(start)
    assert len(J) == 31
    assert J[-1] == 0
    length = _deep_mixer.correlation_length(start)
    assert (J[10] - J[20]) * math.log(10) == pytest.approx(10 / length, rel=1e-6)
    assert _deep_mixer.correlation_length(mixer_point(mu=1.0)) is None


def test_the_measured_jacobian_is_that_of_the_whole_network(monkeypatch):
    """J over all blocks, image by image, by the Jacobian itself: a row a cotangent."""
    monkeypatch.setattr(_deep_mixer, "PROBED", 2)
    monkeypatch.setattr(_deep_mixer, "PROBES", 300)
    data = stripes()
    dev = get_device("cpu", "float64", 1)
    start = mixer_point(mu=0.9, dtype="float64", depth=2, width=4)
    found = _deep_mixer.measured(start, data, dev)
    assert len(found) == 3
    assert found[-1] == 0
    net = _deep_mixer.network(start, data)
    weights = _deep_mixer.first_weights(start, net) | net.init_buffers()
    first, *blocks, _ = net.stages(dev, weights)
    squares = []
    for image in data.train[:2]:
        x, _ = first.forward(image[None])
        run = Propagation(dev, blocks, x)
        rows = np.eye(x.size).reshape(x.size, *x.shape)
        for stage, cache in zip(reversed(blocks), reversed(run.caches), strict=True):
            rows = [stage.backward(row, cache) for row in rows]
        squares.append(np.square(rows).sum() / x.size)
    assert found[0] == pytest.approx(np.log10(np.mean(squares)), abs=0.03)


def test_the_same_weights_start_at_every_mu():
    data = stripes()
    weights = []
    for mu in (1.0, 0.5):
        start = mixer_point(mu=mu)
        weights.append(_deep_mixer.first_weights(start, _deep_mixer.network(start, data)))
    for name, x in weights[0].items():
        np.testing.assert_array_equal(x, weights[1][name])
        if name.endswith(".bias"):
            assert not x.any()


def test_of_the_rates_the_lowest_loss_is_shown():
    args = deep_mixer.arguments(["--mu", "1", "--lr", "0.5", "0.1", "0.2"])
    curves = {"step": [0.0, 1.0], "train_accuracy": [0.1, 0.2], "test_accuracy": [0.1, 0.2]}
    found = {(1.0, 0.1): curves | {"train_loss": [2.3, 1.0], "diverged": None}}
    found[1.0, 0.2] = curves | {"train_loss": [2.3, 0.5], "diverged": None}
    found[1.0, 0.5] = curves | {"train_loss": [2.3, 0.1], "diverged": 7}
    assert deep_mixer.best(args, found, 1.0) == 0.2
    theory = {1.0: (None, np.zeros(3))}
    row = deep_mixer.summary(args, found, theory, {1.0: np.zeros(3)})["mu 1"]
    assert row["lr 0.5"] == [None, None, None]
    assert row["lr 0.2"] == [0.5, 0.2, 0.2]
    for network in found.values():
        network["diverged"] = round(10 * network["train_loss"][-1])
    assert deep_mixer.best(args, found, 1.0) == 0.1  # it held out longest


def test_a_mixer_that_diverges_keeps_its_curve(monkeypatch, tmp_path):
    monkeypatch.setattr(_deep_mixer, "load", lambda folder: stripes())
    pack = [mixer_point(lr=1e12, steps=50)]
    (found,) = _deep_mixer.train(pack, "cpu", None, tmp_path, threads=1)
    assert 1 <= found["diverged"] <= 50
    assert found["step"][0] == 0
    assert np.isfinite(found["train_loss"]).all()
    assert not list(tmp_path.iterdir())


def test_a_patch_must_divide_the_image():
    args = deep_mixer.arguments(["--patch", "3"])
    with pytest.raises(InputError, match="--patch 3"):
        deep_mixer.points(args, (8, 8, 1))
    assert deep_mixer.patch_of(deep_mixer.arguments([]), (28, 28, 1)) == 7


# -- going on --------------------------------------------------------------------------------------


def results_of(folder):
    return json.loads((folder / "run.json").read_text())["results"]


@pytest.mark.slow
def test_a_map_goes_on_where_it_stopped(tmp_path):
    """What is missing is trained, by processes too, and all is as in one go."""
    write_images(tmp_path)
    words = [*SMALL, "--grid", "2", "--batch", "4", "--lr", "0.01", "0.1", "--no-plot"]
    words += ["--threads", "1", "--data", str(tmp_path)]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        assert training_maps.main([*words, "--workers", "0", "--out", str(folder)]) is None
    (parts / "run.json").unlink()
    for path in sorted((parts / "packs").glob("*.json"))[::2]:
        path.unlink()
    training_maps.main([*words, "--workers", "2", "--out", str(parts), "--resume"])
    assert results_of(whole) == results_of(parts)
    with pytest.raises(InputError, match="was made with depth = 6"):
        training_maps.main([*words, "--depth", "7", "--out", str(parts), "--resume"])


@pytest.mark.slow
def test_a_mixer_goes_on_inside_a_network(tmp_path, monkeypatch):
    """Ctrl-C at step 4 of 6 of the second network."""
    write_images(tmp_path)
    words = "--depth 2 --width 4 --hidden 4 4 --steps 6 --measure-every 2 --batch 4 --lr 0.1"
    words += " --mu 1 0.5 --workers 0 --threads 1 --no-plot"
    words = [*words.split(), "--data", str(tmp_path)]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    deep_mixer.main([*words, "--out", str(whole)])
    usual = ImageTraining.measurements
    steps = []

    def measurements(run):
        steps.append(run.t)
        if steps[4:] == [0, 2, 4]:
            signal.raise_signal(signal.SIGINT)
        return usual(run)

    monkeypatch.setattr(ImageTraining, "measurements", measurements)
    with pytest.raises(KeyboardInterrupt):
        deep_mixer.main([*words, "--out", str(parts)])
    assert len(list((parts / "packs").glob("*.npz"))) == 1
    deep_mixer.main([*words, "--out", str(parts), "--resume"])
    assert steps[7:] == [6]
    assert results_of(whole) == results_of(parts)
    assert (whole / "log.csv").read_bytes() == (parts / "log.csv").read_bytes()
    assert not list((parts / "packs").glob("*.npz"))
