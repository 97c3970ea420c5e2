"""The benchmark's workloads on the fake GPU, its count of products, and a run of all workloads of
which one fails."""

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import fakecupy
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
import _benchmark_steps as steps  # noqa: E402
import benchmark  # noqa: E402

from tinygrok.engine.errors import InputError  # noqa: E402

ARGS = Namespace(p=11, width=8, seed=0, only=None)
SMALL = {
    "mlp": {},
    "mlp-batchnorm": {},
    "ensemble": {},
    "in-context": {"width": 8, "heads": 2, "depth": 1},
    "lcg": {"batch": 2, "context": 8, "channels": 8},
    "lcg-base-b": {"batch": 2, "context": 8, "channels": 8},
    "vgg": {"batch": 2, "divide": 64},
    "apjn": {"networks": 2, "width": 8, "depth": 3, "batch": 4},
    "optimizer": {"count": 2, "size": 10},
}
FUNCTIONS = dict(steps.WORKLOADS) | {"lcg-base-b": steps.lcg_base_b}


def small(name, dev):
    return FUNCTIONS[name](ARGS, dev, False, **SMALL[name])["tinygrok"]()


def test_every_workload_is_here():
    assert set(SMALL) == set(steps.WORKLOADS) - {"in-context-small"}


@pytest.mark.parametrize("name", SMALL)
def test_workloads_on_a_gpu(name):
    """They run; but for the estimator, which reads its norms, a step never waits for the device."""
    step = small(name, fakecupy.fake_device("float32"))
    step()
    fakecupy.counts.syncs = 0
    step()
    assert fakecupy.counts.syncs == 0 or name == "apjn"


def test_products_are_those_of_the_step(host_dev):
    """mlp: z = a W, dW = a^T dz and da = dz W^T, over half of the table."""
    bare, work = benchmark.products(host_dev, small("mlp", host_dev))
    rows = 11 * 11 // 2
    assert work == 3 * rows * 8 * 11
    assert host_dev.products is None
    bare()
    assert benchmark.products(host_dev, small("optimizer", host_dev))[1] == 0


def test_a_workload_that_fails_does_not_stop_the_others(monkeypatch, tmp_path, capsys):
    def run(command):
        name, out = (command[command.index(flag) + 1] for flag in ("--workload", "--out"))
        Path(out).mkdir(parents=True)
        (Path(out) / "run.json").write_text(
            json.dumps({"results": {name: {"ratio_to_floor": 1.5}}})
        )
        return subprocess.CompletedProcess(command, name == "lcg")

    monkeypatch.setattr(benchmark.subprocess, "run", run)
    args = benchmark.arguments(["--workload", "all", "--threads", "1"])
    assert set(benchmark.everything(args, tmp_path)) == set(steps.WORKLOADS) - {"lcg"}
    assert "lcg: FAILED" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"results": 5}', "\x80"])
def test_a_damaged_part_is_refused(tmp_path, text):
    for name in benchmark.WORKLOADS:
        folder = tmp_path / "packs" / name
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match="run.json: cannot be read"):
        benchmark.everything(benchmark.arguments(["--workload", "all", "--resume"]), tmp_path)


def test_medians_over_turns(host_dev):
    calls = {"a": 0, "b": 0}

    def step(name):
        calls[name] += 1

    seconds = benchmark.interleaved(
        host_dev, {name: lambda name=name: step(name) for name in calls}, 3, 4
    )
    assert calls == {"a": 16, "b": 16}
    assert all(0 < s < 0.1 for s in seconds.values())


def test_scaling(host_dev, monkeypatch):
    monkeypatch.setattr(benchmark, "SCALING", {"width": (steps.mlp, (8, 16, 32), "width^1")})
    args = benchmark.arguments(["--scaling", "--p", "11", "--repeats", "1"])
    found = benchmark.scaling(args, host_dev)["width"]
    assert abs(found["exponent_of_products"] - 1) < 1e-12
    assert np.isfinite(found["exponent"])
