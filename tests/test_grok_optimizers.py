"""The race of optimisers: its networks, its statistics, what it refuses, and that it goes on to the
same results."""

import json
import math

import _grok_optimizers as networks
import grok_addition
import grok_optimizers
import numpy as np
import pytest
from _grok_optimizers import METHODS

from tinygrok.cli import InputError
from tinygrok.engine.device import Device
from tinygrok.engine.optim import global_norm
from tinygrok.training import checkpoint
from tinygrok.training.loop import Run

TINY = "--p 11 --width 12 --steps 12 --log-every 4 --seeds 3 --choosing 2 --factors 0.5 1 --no-plot"


def points_of(method, factor=1):
    return grok_optimizers.pack(grok_optimizers.arguments(TINY.split()), method, factor, 5, 3)


def run(folder, *flags):
    words = [*TINY.split(), "--threads", "1", "--out", str(folder)]
    for flag in flags:
        words += flag.split()
    assert grok_optimizers.main(words) is None
    return json.loads((folder / "run.json").read_text())["results"]


# -- networks --------------------------------------------------------------------------------------


def test_a_member_is_a_run_of_grok_addition(host_dev):
    """Bit by bit, with the defaults of both."""
    flags = ["--p", "13", "--width", "20", "--seed", "6", "--log-every", "5"]
    alone = grok_addition.build(grok_addition.arguments(flags), host_dev)
    args = grok_optimizers.arguments(flags)
    points = grok_optimizers.pack(args, "AdamW", 1, 5, 2)
    assert grok_addition.arguments(flags).lr == points[0]["lr"]
    pack = networks.build(host_dev, points)
    for one in (alone, pack):
        one.fit(12, 4)
    for name, x in alone.params.to_host().items():
        np.testing.assert_array_equal(x, pack.params.to_host(1)[name])
    ours = np.array(pack.history["test_accuracy"])[:, 1]
    np.testing.assert_array_equal(ours, alone.history["test_accuracy"])


def test_every_method_moves_the_weights_its_own_way(host_dev):
    """The same first weights; after a few steps no two methods agree."""
    ends = {}
    for method in METHODS:
        ensemble = networks.build(host_dev, points_of(method))
        ensemble.fit(3)
        ends[method] = ensemble.params.to_host()["W"]
    names = list(ends)
    for i, first in enumerate(names):
        for other in names[i + 1 :]:
            assert np.abs(ends[first] - ends[other]).max() > 1e-6, (first, other)


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupted_pack_goes_on_bit_by_bit(method, tmp_path, monkeypatch):
    points = points_of(method)
    whole = networks.train(points, "cpu", threads=1)
    step = Run.step

    def interrupted(self):
        if self.t == 6:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Run, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        networks.train(points, "cpu", threads=1, folder=tmp_path)
    (saved,) = tmp_path.glob("*.npz")
    meta, _ = checkpoint.load_arrays(saved)
    assert meta["step"] == 6
    monkeypatch.setattr(Run, "step", step)
    assert networks.train(points, "cpu", threads=1, folder=tmp_path) == whole
    assert not list(tmp_path.iterdir())


def test_the_constant_norm_is_a_multiple_of_the_first(host_dev):
    method = "constant norm"
    ensemble = networks.build(host_dev, points_of(method))
    first = host_dev.to_host(global_norm(host_dev, ensemble.params))
    ensemble.fit(2)
    after = host_dev.to_host(global_norm(host_dev, ensemble.params))
    np.testing.assert_allclose(after, METHODS[method]["norm"] * first, rtol=1e-12)


def test_a_pack_ends_when_all_have_grokked(monkeypatch):
    """And not when some have."""
    monkeypatch.setattr(networks, "GROKKED", 0.0)
    outcomes = networks.train(points_of("AdamW"), "cpu", threads=1)
    assert {len(x["test_accuracy"]) for x in outcomes} == {1}
    monkeypatch.setattr(networks, "GROKKED", 1.1)
    outcomes = networks.train(points_of("AdamW"), "cpu", threads=1)
    assert {len(x["test_accuracy"]) for x in outcomes} == {4}


def test_networks_that_diverge_are_counted_and_the_others_train_on(monkeypatch):
    build = networks.build

    def one_is_bad(dev: Device, points):
        ensemble = build(dev, points)
        for e, point in enumerate(points):
            if point["seed"] == 6:
                ensemble.params["W"][e] *= 1e30
        return ensemble

    monkeypatch.setattr(networks, "build", one_is_bad)
    with np.errstate(over="ignore"):
        outcomes = networks.train(points_of("SGD with momentum"), "cpu", threads=1)
    assert [x["diverged"] for x in outcomes] == [False, True, False]
    assert outcomes[1]["step_grok"] is None
    assert len(outcomes[0]["test_accuracy"]) == 4


def test_a_network_that_groks_and_then_diverges_has_grokked(host_dev):
    """As in a pack of its own, which ends when it groks."""
    ensemble = networks.build(host_dev, points_of("AdamW"))
    ensemble.fit(8, 4)
    ensemble.history["test_accuracy"][1][2] = 0.995
    outcomes = [networks.outcome(ensemble, e, diverged=True) for e in range(3)]
    assert [x["step_grok"] for x in outcomes] == [None, None, 4]


# -- statistics ------------------------------------------------------------------------------------


def found(step, accuracy):
    return {"step_grok": step, "step_train": 5, "diverged": False, "test_accuracy": [0, accuracy]}


def test_the_learning_rate_of_the_smallest_median_is_chosen():
    words = ["--methods", "AdamW", "Muon", "--factors", "3", "1", "2", "--choosing", "3"]
    args = grok_optimizers.arguments(words)
    tried = {
        ("AdamW", 1): [found(90, 1), found(80, 1), found(70, 1)],
        ("AdamW", 2): [found(50, 1), found(None, 0.5), found(None, 0.5)],
        ("AdamW", 3): [found(60, 1), found(60, 1), found(None, 0.5)],
        ("Muon", 1): [found(None, 0.1)] * 3,
        ("Muon", 2): [found(10, 1), found(None, 0.2), found(None, 0.2)],
        ("Muon", 3): [found(None, 0.4)] * 3,
    }
    assert grok_optimizers.chosen(args, tried) == {"AdamW": 3, "Muon": 2}
    assert grok_optimizers.rank(tried["Muon", 1])[0] == math.inf


def test_learning_rates_are_chosen_on_other_seeds():
    args = grok_optimizers.arguments(TINY.split())
    packs = grok_optimizers.choosing_packs(args).values()
    choosing = {point["seed"] for points in packs for point in points}
    reported = {p["seed"] for p in grok_optimizers.pack(args, "AdamW", 1, args.seed, args.seeds)}
    assert len(choosing) == args.choosing
    assert not choosing & reported


# -- the run ---------------------------------------------------------------------------------------


def test_a_run_and_its_continuation(tmp_path, capsys):
    rows = run(tmp_path / "a")
    assert list(rows) == list(METHODS)
    printed = capsys.readouterr().out
    for row in rows.values():
        assert row["networks"] == 3
        assert row["grokked"] == 0
        assert row["median"] is None
        assert set(row["median_by_factor"]) == {"0.5", "1"}
        assert row["at_the_edge"]
    assert "> 12" in printed
    log = (tmp_path / "a/log.csv").read_text().splitlines()
    assert len(log) == 1 + len(rows) * (2 * 2 + 3)
    packs = sorted((tmp_path / "a/packs").glob("*.json"))
    assert len(packs) == len(rows) * 3
    for path in packs[::2]:
        path.unlink()
    assert run(tmp_path / "a", "--resume") == rows


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--factors 0.1 0.1", "--factors: every value once"),
        ("--methods AdamW AdamW", "--methods: every value once"),
        ("--methods StableMax --weight-decay 2", "--weight-decay means nothing to StableMax"),
        ("--seeds 1000 --choosing 1000", "10,000 at most"),
        ("--p 11 --train-frac 0.0001", "training"),
    ],
)
def test_refusals(flags, said):
    with pytest.raises(InputError, match=said):
        grok_optimizers.arguments(flags.split())
