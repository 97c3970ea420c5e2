"""The benchmark's workloads on the fake GPU, its count of products, its busy neighbours, its
tables, and a run of all workloads of which one fails."""

import json
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path

import fakecupy
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
import _benchmark_busy as busy  # noqa: E402
import _benchmark_steps as steps  # noqa: E402
import _benchmark_table as tables  # noqa: E402
import _benchmark_times as times  # noqa: E402
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
ROOT = Path(__file__).parent.parent
ENDED = 20.0  # seconds within which a process that should end has ended
FUNCTIONS = dict(steps.WORKLOADS) | {"lcg-base-b": steps.lcg_base_b}


@pytest.fixture(autouse=True)
def some_torch(monkeypatch):
    """Tables of made-up times need no PyTorch."""
    monkeypatch.setattr(tables, "torch_version", lambda: "2.13.0")


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


@pytest.mark.torch
def test_products_by_pytorch_are_the_same(host_dev, monkeypatch):
    """The same shapes and flags, and PyTorch's threads are given back."""
    torch = pytest.importorskip("torch")
    step = small("mlp-batchnorm", host_dev)
    host_dev.products = []
    step()
    ours = [
        np.matmul(np.zeros(a).T if ta else np.zeros(a), np.zeros(b).T if tb else np.zeros(b))
        for a, b, ta, tb in host_dev.products
    ]
    host_dev.products = None
    theirs = benchmark.products_of_torch(host_dev, step)
    found = []
    plain = torch.matmul
    threads = []

    def matmul(a, b, out):
        threads.append(torch.get_num_threads())
        found.append(plain(a, b, out=out).shape)

    monkeypatch.setattr(torch, "matmul", matmul)
    theirs()
    assert sorted(found) == sorted(x.shape for x in ours)
    assert set(threads) == {1}
    assert torch.get_num_threads() == host_dev.threads


@pytest.mark.slow
def test_small_sizes_are_those_of_their_names(host_dev):
    """One command times them: --workload small."""
    assert steps.GROUPS["small"] == tuple(steps.SMALL)
    work = {}
    for name in ("mlp-small", "in-context-batch-8"):
        step = steps.SMALL[name](ARGS, host_dev, False)["tinygrok"]()
        work[name] = benchmark.products(host_dev, step)[1]
    assert work["mlp-small"] == 3 * (31 * 31 // 2) * 100 * 31
    full = steps.in_context(ARGS, host_dev, False)["tinygrok"]()
    assert work["in-context-batch-8"] == benchmark.products(host_dev, full)[1] / 4


def part(**more):
    """A workload's part of run.json, as the table needs it."""
    timed = {"tinygrok": [0.002, 0.001, 0.004], "torch eager": [0.004] * 3}
    timed |= {"matrix products": [0.001] * 3} | more
    return tables.summary(timed, 5e5, {"tinygrok": 40.0, "torch eager": None})


def test_a_workload_that_fails_does_not_stop_the_others(monkeypatch, tmp_path, capsys):
    def run(command):
        name, out = (command[command.index(flag) + 1] for flag in ("--workload", "--out"))
        Path(out).mkdir(parents=True)
        (Path(out) / "run.json").write_text(json.dumps({"results": {name: part()}}))
        return subprocess.CompletedProcess(command, name == "lcg")

    monkeypatch.setattr(benchmark.subprocess, "run", run)
    args = benchmark.arguments(["--workload", "all", "--threads", "1"])
    assert set(benchmark.everything(args, tmp_path)) == set(steps.WORKLOADS) - {"lcg"}
    assert "lcg: FAILED" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"results": 5}', '{"results": {"mlp": {}}}', "\x80"]
)
def test_a_damaged_part_is_refused(tmp_path, text):
    for name in steps.WORKLOADS:
        folder = tmp_path / "packs" / name
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match="run.json: cannot be read"):
        benchmark.everything(benchmark.arguments(["--workload", "all", "--resume"]), tmp_path)


@pytest.mark.parametrize("words", ["--workload small", "--workload mlp", "--scaling"])
def test_the_command_that_goes_on_is_one_that_is_taken(words, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    for name in ("everything", "one", "scaling"):
        monkeypatch.setattr(benchmark, name, interrupted)
    monkeypatch.setattr(benchmark.cli.Experiment, "current", None)
    with pytest.raises(KeyboardInterrupt):
        benchmark.main([*words.split(), "--threads", "1", "--out", str(tmp_path / "a")])
    shown = benchmark.cli.to_go_on()
    assert bool(shown) == ("small" in words)
    if shown:
        benchmark.arguments(shown.partition("benchmark.py")[2].split())


def test_medians_over_turns(host_dev):
    calls = {"a": 0, "b": 0}

    def step(name):
        calls[name] += 1

    candidates = {name: lambda name=name: step(name) for name in calls}
    seen = []
    found = times.turns(host_dev, candidates, 3, 4, seen.append)
    assert calls == {"a": 16, "b": 16}
    assert seen == [0, 1, 2, 3]
    assert all(len(of_turns) == 3 for of_turns in found.values())
    seconds = benchmark.interleaved(host_dev, candidates, 3, 4)
    assert all(0 < s < 0.1 for s in seconds.values())


def test_a_slow_step_is_timed_once_a_turn(host_dev, monkeypatch):
    monkeypatch.setattr(times, "TURN", 0.001)
    calls = []

    def step():
        calls.append(1)
        time.sleep(0.002)

    found = times.turns(host_dev, {"slow": step}, 2, 5)["slow"]
    assert len(calls) == 3 * 2
    assert len(found) == 2
    assert min(found) > 0.001


def test_medians_quartiles_and_rates():
    """5e5 multiply-adds in 2 ms are 0.5 GFLOP/s."""
    assert benchmark.arguments([]).repeats >= 20
    found = part()
    assert found["turns"] == 3
    assert found["milliseconds"]["tinygrok"] == 2
    assert found["quartiles"]["tinygrok"] == [1.5, 3]
    assert found["gigaflops"] == pytest.approx(0.5)
    assert found["products_gigaflops"] == pytest.approx(1)
    assert found["ratio_to_floor"] == 2
    assert (found["best_torch"]["name"], found["best_torch"]["ratio"]) == ("eager", 0.5)
    assert found["numpy_kernels"] is None
    assert found["torch_products_gigaflops"] is None


def test_the_table_names_both_kinds_of_kernels(capsys, host_dev):
    both = part(**{tables.PLAIN: [0.003] * 3, tables.THEIR_PRODUCTS: [0.0005] * 3})
    compiled, plain = tables.lines({"mlp": both}, "compiled")
    assert compiled.split()[:6] == ["mlp", "compiled", "2.00", "1.50-3.00", "0.50", "2.00"]
    assert plain.split()[:6] == ["mlp", "numpy", "3.00", "3.00-3.00", "0.75", "3.00"]
    tables.table({"mlp": both}, host_dev, 3)
    printed = capsys.readouterr().out
    assert "at best: 1 by NumPy's" in printed
    assert "2 by PyTorch" in printed
    assert "beside 3 busy processes" in printed
    assert len(tables.lines({"mlp": part()}, "numpy")) == 1


def running(pid):
    """Whether a process runs; one that has ended, and that nobody has asked, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children(pid):
    return [int(x) for x in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_for_end(pids):
    until = time.monotonic() + ENDED
    while any(map(running, pids)) and time.monotonic() < until:
        time.sleep(0.02)
    return not any(map(running, pids))


HAS_PROC = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").exists()


@pytest.mark.slow
@pytest.mark.skipif(not HAS_PROC, reason="children are found in /proc")
@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_busy_processes_end_with_the_block(error):
    before = set(children(os.getpid()))
    ends = pytest.raises(error) if error else nullcontext()
    with ends, busy.neighbours(2):
        busy_ones = set(children(os.getpid())) - before
        assert all(os.getpriority(os.PRIO_PROCESS, pid) == os.nice(0) for pid in busy_ones)
        if error:
            raise error
    assert len(busy_ones) == 2
    assert not any(map(running, busy_ones))


@pytest.mark.slow
@pytest.mark.skipif(not HAS_PROC, reason="children are found in /proc")
def test_busy_processes_end_when_their_parent_is_killed():
    text = "import time, _benchmark_busy as busy\nwith busy.neighbours(1): print(1); time.sleep(99)"
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "examples")))
    environment = os.environ | {"PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-c", text]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as parent:
        assert parent.stdout.readline() == b"1\n"
        started = children(parent.pid)
        assert len(started) == 1
        parent.send_signal(signal.SIGKILL)
    assert wait_for_end(started)


def test_a_busy_process_that_ends_early_is_told(monkeypatch):
    monkeypatch.setattr(busy.sys, "executable", "true")
    with pytest.raises(InputError, match="did not start"), busy.neighbours(1):
        pass


def test_scaling(host_dev, monkeypatch):
    monkeypatch.setattr(benchmark, "SCALING", {"width": (steps.mlp, (8, 16, 32), "width^1")})
    args = benchmark.arguments(["--scaling", "--p", "11", "--repeats", "1"])
    found = benchmark.scaling(args, host_dev)["width"]
    assert abs(found["exponent_of_products"] - 1) < 1e-12
    assert np.isfinite(found["exponent"])
