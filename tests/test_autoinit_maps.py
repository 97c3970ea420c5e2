"""The maps of AutoInit: the theory of one block, what is measured beside it, and the example."""

import argparse
import ast
import json
import math
import re
from pathlib import Path

import autoinit_maps  # isort: skip
import _autoinit_maps as parts
import _autoinit_theory as theory
import numpy as np
import pytest

from tinygrok.engine.errors import InputError
from tinygrok.models import vision
from tinygrok.models.chain import Chain

POINT = {"part": "map", "depth": 4, "width": 60, "inputs": 64, "probes": 2, "seed": 0}
POINT |= {"dtype": "float32", "steps": 25, "loss": "log", "sigma_w": 2.0, "lr": 0.1}
TINY = "--grid 3 --depth 2 --width 12 --steps 6 --inputs 8 --vgg-steps 0 --threads 1 --no-plot"


# -- theory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", parts.LOSSES)
@pytest.mark.parametrize("J", [0.03, 0.3, 0.9, 1.2, 3.0, 20.0])
def test_the_largest_monotone_step(J, loss):
    """With it J comes to 1 from one side; with a little more it crosses 1, at once or later."""
    largest = theory.relu_monotone(J, loss)
    side = math.copysign(1, math.log(J))
    below = np.log(theory.relu_dynamics(J, 0.999 * largest, 3000, loss))
    assert (side * below > -1e-9).all()
    above = np.log(theory.relu_dynamics(J, 1.05 * largest, 3000, loss))
    assert (side * above < -1e-9).any()


@pytest.mark.parametrize("kappa", [0.1, 0.5, 0.95])
def test_the_square_loss_diverges_beyond_its_threshold(kappa):
    limit = 1 + 2 / kappa
    below = theory.relu_dynamics(0.999 * limit, kappa, 20_000, "square")
    assert abs(below[-1] - 1) < 1e-6
    above = theory.relu_dynamics(1.001 * limit, kappa, 20_000, "square")
    assert len(above) < 20_000
    assert above[-1] > 1e10


def test_a_residual_block_shrinks_for_ever():
    """J - 1 is the exact map, and late 1/(4 c lr t), c = J - 1 at the start."""
    lr = 0.1
    curve = np.array(theory.residual_dynamics(1.5, lr, 5000))
    assert curve[0] == 1.5
    late = curve[-1] - 1
    assert abs(late * 4 * 0.5 * lr * 5000 / 1 - 1) < 0.02


def test_sigma_of_residual_blocks():
    for mu in (0.0, 0.6, 0.9):
        assert abs(mu**2 + theory.residual_sigma(mu) ** 2 / 2 - 1) < 1e-12


@pytest.mark.parametrize(
    ("means", "rms", "expected"),
    [
        ([1, 0.5, 0.01], [1, 0.5, 0.05], (True, False, 2)),
        ([1, -0.5, 0.01], [1, 0.5, 0.05], (True, True, 2)),
        ([-1, 0.04, 0.01], [1, 0.05, 0.05], (True, False, 1)),
        ([1, 0.05, 0.5], [1, 0.05, 0.5], (True, False, None)),
        ([0.01, 0.01], [0.01, 0.01], (True, False, 0)),
    ],
    ids=["from one side", "crosses", "crosses too little", "leaves again", "there at once"],
)
def test_outcomes(means, rms, expected):
    found = theory.outcome(means, rms)
    assert (found["finite"], found["crossed"], found["settled"]) == expected


# -- what is measured ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "sigma_w", "lr"),
    [
        ("log", 2.0, 0.1),
        ("log", 0.5, 0.5),
        ("log", 4.0, 0.04),
        ("log", 2.0, 0.4),
        ("log", 1.0, 1.6),
        ("square", 2.0, 0.1),
        ("square", 6.0, 0.02),
        ("square", 1.0, 0.8),
    ],
)
def test_networks_do_what_one_block_does(host_dev, loss, sigma_w, lr):
    point = POINT | {"loss": loss, "sigma_w": sigma_w, "lr": lr}
    found = parts.mapped(host_dev, point)
    expected = theory.predicted(point)
    for name in ("finite", "crossed"):
        assert found[name] == expected[name]
    assert (found["settled"] is None) == (expected["settled"] is None)
    if expected["settled"] is not None:
        assert abs(found["settled"] - expected["settled"]) <= 2


@pytest.mark.slow
def test_without_a_norm_the_tuning_finds_the_theory(host_dev):
    for mu in (0.0, 0.6):
        point = POINT | {"norm": "none", "mu": mu, "steps": 80, "lr": 0.2}
        found = parts.found(host_dev, point)
        assert found["loss_after"] < 0.02 < found["loss_before"]
        assert abs(np.mean(found["sigma_w"]) / theory.residual_sigma(mu) - 1) < 0.05


@pytest.mark.slow
def test_with_batchnorm_weights_shrink_from_block_to_block(host_dev):
    found = parts.found(host_dev, POINT | {"norm": "batch", "mu": 0.0, "steps": 100, "lr": 0.1})
    assert abs(autoinit_maps.ratio(found["sigma_w"]) / theory.BATCHNORM_RATIO - 1) < 0.03
    assert found["loss_after"] < 0.02


def test_a_row_that_diverges_says_so_and_no_more(host_dev):
    point = POINT | {"loss": "square", "sigma_w": 8.0, "lr": 1.0}
    assert parts.mapped(host_dev, point) == theory.DIVERGED | {"means": None}


def test_vgg_is_tuned_and_trained(host_dev, monkeypatch):
    """A small network in its place."""
    net = vision.vgg(parts.PIXELS, 10, (2, "M", 2, "M", 3))
    images = parts.noise(0, 12)
    assert images.classes == 10
    found = parts.vgg19(host_dev, net, images, 4, 2, 0)
    assert len(found["losses"]) == 2
    assert len(found["J_before"]) == len(net.blocks)
    assert abs(np.log(found["J_after"])).max() < abs(np.log(found["J_before"])).max()
    assert found["seconds_a_training_step"] > 0
    assert found["peak_gigabytes"] > 0.01
    assert found["parameters"] == net.size


# -- the example -----------------------------------------------------------------------------------


def run(flags, out):
    assert autoinit_maps.main([*TINY.split(), *flags.split(), "--out", str(out)]) is None
    record = json.loads((out / "run.json").read_text())
    return record["results"], (out / "log.csv").read_text()


@pytest.mark.slow
def test_what_is_missing_is_measured_again_bit_by_bit(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(parts, "TUNING", 3)
    monkeypatch.setattr(parts, "RESIDUAL", parts.RESIDUAL | {"steps": 3})
    results, log = run("", tmp_path / "a")
    assert log.count("\n") == 1 + 2 * 9
    packs = sorted((tmp_path / "a/packs").glob("*.json"))
    for path in packs[::2]:
        path.unlink()
    assert run("--resume", tmp_path / "a") == (results, log)
    assert sorted((tmp_path / "a/packs").glob("*.json")) == packs
    with pytest.raises(InputError, match="steps = 6"):
        run("--resume --steps 7", tmp_path / "a")
    assert "BatchNorm, mu = 0.9" in capsys.readouterr().out


def test_the_share_of_cells_that_do_as_predicted():
    settled = {"finite": True, "crossed": False, "settled": 3}
    crossed = settled | {"crossed": True}
    rows = [(None, settled, settled | {"settled": 5}), (None, settled, crossed)]
    rows += [(None, theory.DIVERGED, theory.DIVERGED), (None, theory.DIVERGED, settled)]
    rows += [(None, settled, settled), (None, settled, settled)]
    assert autoinit_maps.agreement(rows) == (5 / 6, 3 / 4)
    assert autoinit_maps.agreement(rows[2:3]) == (1, None)


def test_memory_is_asked_for_first(host_dev):
    wide = argparse.Namespace(width=10_000, depth=1000, workers=0, probes=2, inputs=64)
    small = argparse.Namespace(width=10, depth=2, workers=0, probes=2, inputs=64, vgg_batch=10_000)
    with pytest.raises(InputError, match="weights"):
        autoinit_maps.require_memory(host_dev, wide, None, parts.PIXELS)
    vgg = vision.vgg(parts.PIXELS, 10)
    assert isinstance(vgg, Chain)
    with pytest.raises(InputError, match="VGG 19"):
        autoinit_maps.require_memory(host_dev, small, vgg, parts.PIXELS)


def test_the_examples_extra_brings_the_digits():
    """`pip install '.[examples]'` is enough for what trains on scikit-learn's images."""
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    extras = dict(re.findall(r"^(\w+) = (\[.+\])", text, flags=re.MULTILINE))
    (examples,) = ast.literal_eval(extras["examples"])
    assert "digits" in re.split(r"[\[\],]", examples)
    assert any(name.startswith("scikit-learn") for name in ast.literal_eval(extras["digits"]))
