"""Sweeps: resumable, parallel, and nothing lost or run twice when workers or the driver die."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from argparse import Namespace
from concurrent.futures import (
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from contextlib import suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from tinygrok import cli
from tinygrok.engine import compiled
from tinygrok.engine.device import get_device
from tinygrok.engine.errors import InputError
from tinygrok.training.sweep import SweepError, _read, sweep

PACKS = [[{"x": i, "y": j} for j in range(2)] for i in range(6)]
POOL = partial(ProcessPoolExecutor, 2, mp_context=get_context("spawn"))


def plain(pack):
    return [{"sum": p["x"] + p["y"]} for p in pack]


def logged(pack, log):
    """Notes every run, so that a test can count them."""
    with open(log, "a") as file:
        file.write(f"{pack[0]['x']}\n")
    time.sleep(0.05)
    return plain(pack)


def dies_once(pack, log):
    """The worker that gets pack 3 first is killed in the middle."""
    if pack[0]["x"] == 3 and not Path(log + ".died").exists():
        Path(log + ".died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return logged(pack, log)


def raises(pack):
    if pack[0]["x"] == 4:
        raise ValueError("no such thing")
    return plain(pack)


EXPECTED = [plain(pack) for pack in PACKS]


def runs(log):
    return sorted(int(x) for x in Path(log).read_text().split())


@pytest.mark.slow
@pytest.mark.parametrize(
    "executor", [None, partial(ThreadPoolExecutor, 2), POOL], ids=["here", "threads", "processes"]
)
def test_sweep_and_resume(executor, tmp_path):
    log, seen = str(tmp_path / "log"), []
    run = partial(logged, log=log)
    assert sweep(PACKS[:2], run, tmp_path / "out", executor) == EXPECTED[:2]
    assert sweep(PACKS, run, tmp_path / "out", executor, lambda *a: seen.append(a)) == EXPECTED
    assert runs(log) == list(range(6)), "a finished pack was run again"
    assert seen[0] == (2, 6)
    assert seen[-1] == (6, 6)


def test_an_executor_instance_stays_open(tmp_path):
    with ThreadPoolExecutor(2) as pool:
        assert sweep(PACKS, plain, tmp_path, pool) == EXPECTED
        assert pool.submit(int, 3).result() == 3


def test_damaged_and_foreign_files_are_run_again(tmp_path):
    sweep(PACKS, plain, tmp_path)
    first, second, *_ = sorted(tmp_path.iterdir())
    whole = first.read_bytes()
    first.write_bytes(whole[:-20])
    second.write_text(json.dumps({"points": [], "results": []}))
    assert sweep(PACKS, plain, tmp_path) == EXPECTED
    assert first.read_bytes() == whole
    assert len(list(tmp_path.iterdir())) == 6


@pytest.mark.slow
def test_a_dying_worker_loses_nothing(tmp_path):
    log = str(tmp_path / "log")
    assert sweep(PACKS, partial(dies_once, log=log), tmp_path / "out", POOL) == EXPECTED
    assert (tmp_path / "log.died").exists()
    counts = runs(log)
    assert sorted(set(counts)) == list(range(6))
    assert len(counts) <= 7


def one_pack(tmp_path, results):
    """(the file of a pack, a function that takes it up and says whether it was run again)"""
    calls = []

    def run(pack):
        calls.append(pack)
        return results

    def again():
        calls.clear()
        (found,) = sweep([[{"x": 1, "lr": 0.25}, {"x": 2, "lr": 1e-3}]], run, tmp_path)
        return found, bool(calls)

    again()
    return next(tmp_path.glob("*.json")), again


RESULTS = [{"loss": 0.125, "phase": "Grokking"}, {"loss": 1e-7, "phase": None}]


def test_every_flipped_bit_of_a_pack_is_noticed(tmp_path):
    """The results are what they were, or there are none and the pack is run again."""
    path, again = one_pack(tmp_path, RESULTS)
    good = path.read_bytes()
    points = json.loads(good)["points"]
    for i in range(8 * len(good)):
        damaged = bytearray(good)
        damaged[i // 8] ^= 1 << i % 8
        path.write_bytes(damaged)
        assert _read(path, points) in (None, RESULTS)
    path.write_bytes(good[:-1])
    assert again() == (RESULTS, True)
    assert path.read_bytes() == good


def test_packs_of_earlier_versions_are_taken_up_and_anything_odd_run_again(tmp_path):
    path, again = one_pack(tmp_path, RESULTS)
    stored = json.loads(path.read_text())
    del stored["sha256"]
    path.write_text(json.dumps(stored))
    assert again() == (RESULTS, False)
    for odd in ([], {}, stored | {"results": RESULTS[:1]}, stored | {"more": 1}, stored["points"]):
        path.write_text(json.dumps(odd))
        assert again() == (RESULTS, True)
    path.write_text("[" * 100_000)
    assert again() == (RESULTS, True)
    path.unlink()
    os.mkfifo(path)
    assert again() == (RESULTS, True)
    assert again() == (RESULTS, False)


def test_arrays_and_numbers_of_numpy_are_kept(tmp_path):
    """What comes from a file is what came from the work, and a point has the same file always."""
    given = {"curve": np.arange(3), "pair": (1, 2), "loss": np.float32(0.5), "none": np.nan}
    kept = {"curve": [0, 1, 2], "pair": [1, 2], "loss": 0.5, "none": None}
    calls = []

    def run(pack):
        calls.append(pack)
        return [given for _ in pack]

    points = [{"a": a, "at": (0.5, a)} for a in np.arange(2)]
    for _ in range(2):
        assert sweep([points], run, tmp_path) == [[kept, kept]]
    assert calls == [[{"a": 0, "at": [0.5, 0]}, {"a": 1, "at": [0.5, 1]}]]
    sweep([[{"a": 0, "at": [0.5, 0]}, {"a": 1, "at": [0.5, 1]}]], run, tmp_path)
    assert len(calls) == 1


@pytest.mark.parametrize("value", [np.nan, float("inf"), {1, 2}, print, Path("x"), 1j])
def test_points_that_json_cannot_hold_are_refused_before_the_work(tmp_path, value):
    with pytest.raises(InputError, match="a point that JSON cannot hold"):
        sweep([[{"a": 1}], [{"a": value}]], pytest.fail, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_results_that_cannot_be_kept_name_the_pack(tmp_path, monkeypatch):
    monkeypatch.setattr("tinygrok.training.sweep.SMALL", 1000)
    for results in ([{"a": {1}}], [], {"a": 1}, [{"a": "x" * 1000}]):
        with pytest.raises(SweepError, match=r"begins with {'x': 7} failed"):
            sweep([[{"x": 7}]], lambda pack, results=results: results, tmp_path)
    assert not list(tmp_path.iterdir())


def test_damaged_settings_of_a_sweep_are_refused(tmp_path):
    """config.json, which --resume reads."""
    flags = {"out": tmp_path, "device": "cpu", "dtype": "float64", "threads": 1, "tf32": False}
    flags |= {"defaults": {}, "kernels": "numpy"}
    cli.Experiment(Namespace(resume=False, **flags)).open_sweep()
    path = tmp_path / "config.json"
    good = path.read_text()
    for bad in (good[:-5], "", "[]", "[" * 100_000, '{"a": 1, "a": 1}', '{"a\\u0007": 1}', "\0"):
        path.write_text(bad)
        with pytest.raises(InputError, match="config.json: cannot be read") as error:
            cli.Experiment(Namespace(resume=True, **flags)).open_sweep()
        assert str(error.value).isprintable()
        assert path.read_text() == bad
    path.write_text(good)
    cli.Experiment(Namespace(resume=True, **flags)).open_sweep()


# -- where it computes ---------------------------------------------------------------------------


def test_a_sweep_is_refused_to_several_ranks(tmp_path, monkeypatch):
    """Each would do all of it."""
    args = Namespace(out=tmp_path / "a", resume=False, defaults={})
    dev = get_device("cpu", threads=1)
    monkeypatch.setattr(cli, "launched", lambda: (1, 2))
    for opening in (cli.Experiment.open_sweep, cli.Experiment.open):
        with pytest.raises(InputError, match="start it without mpirun"):
            opening(cli.Experiment(args, dev))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "executor", "threads"), [(None, None, None), (3, None, 3), (None, 1, 1), (3, 1, 3)]
)
def test_workers_have_one_thread_each_or_those_asked_for(given, executor, threads):
    args = Namespace(out="a", device="cpu", threads=given, tf32=False, kernels="numpy")
    experiment = cli.Experiment(args, get_device("cpu", threads=1))
    assert experiment.where(executor)["threads"] == threads


def test_a_worker_without_a_compiler_is_refused(tmp_path, monkeypatch):
    """It would go on with other kernels, and other bits, than the packs beside it."""
    args = Namespace(out=tmp_path, kernels="compiled")
    experiment = cli.Experiment(args, get_device("cpu", threads=1))
    monkeypatch.setattr(compiled, "load", lambda: ({}, "numpy", "kernels of NumPy: no compiler"))
    with ThreadPoolExecutor(1) as pool:
        for executor in (None, pool):
            with pytest.raises(InputError, match="no --kernels compiled on .*: no compiler"):
                experiment.sweep(PACKS, plain, executor, "pack", "packs")
    assert not list(tmp_path.glob("packs/*.json"))
    args.kernels = "numpy"
    assert experiment.sweep(PACKS, plain, None, "pack", "packs") == EXPECTED


# -- nothing waits for ever ------------------------------------------------------------------------


def test_a_hanging_worker_is_named_and_then_given_up(tmp_path, capsys):
    go_on = threading.Event()

    def hangs(pack):
        if pack[0]["x"] == 3:
            go_on.wait()
        return plain(pack)

    with ThreadPoolExecutor(2) as pool:
        with pytest.raises(SweepError, match=r"no pack was finished for \d s; 5 of 6 packs are"):
            sweep(PACKS, hangs, tmp_path, pool, patience=1.0)
        go_on.set()
    assert "1 are waited for, first the pack that begins with {'x': 3" in capsys.readouterr().err


class Gone(Executor):
    """As Dask's whose scheduler died: everything is cancelled."""

    def submit(self, fn, /, *args, **kwargs):
        future = Future()
        future.cancel()
        future.set_running_or_notify_cancel()
        return future


def test_a_dead_scheduler_is_one_line(tmp_path):
    sweep(PACKS[:2], plain, tmp_path)
    with pytest.raises(SweepError, match="scheduler, died .*; 2 of 6 packs are finished in"):
        sweep(PACKS, plain, tmp_path, Gone())


class Watched(ThreadPoolExecutor):
    """A pool that notes whether its end was waited for."""

    waited = None

    def shutdown(self, wait=True, **options):
        Watched.waited = wait
        super().shutdown(wait, **options)


def test_a_pool_that_was_broken_before_is_one_line(tmp_path):
    class Broken(Executor):
        def submit(self, fn, /, *args, **kwargs):
            raise BrokenExecutor("a worker died")

    with pytest.raises(SweepError, match="no worker came up"):
        sweep(PACKS, plain, tmp_path, Broken())


@pytest.mark.parametrize(
    ("error", "waited"), [(None, True), (BrokenExecutor, True), (KeyboardInterrupt, False)]
)
def test_a_pool_that_has_nothing_to_do_is_waited_for(error, waited, tmp_path):
    """Else Python 3.11 may leave with a traceback: it wakes a pool that is just being closed."""

    class Failing(Watched):
        def submit(self, work, *args):
            if error is not None and work is not os.getpid:
                raise error
            return super().submit(work, *args)

    with suppress(SweepError, KeyboardInterrupt):
        sweep(PACKS, plain, tmp_path, Failing)
    assert Watched.waited is waited


@pytest.mark.slow
def test_a_worker_that_is_killed_on_its_way_is_replaced(tmp_path):
    """Before it has done anything: not as a script whose workers never come up."""
    pools = iter([ProcessPoolExecutor(1, get_context("spawn"), os._exit, (9,)), None])

    def executor():
        return next(pools) or ProcessPoolExecutor(1, get_context("spawn"))

    assert sweep(PACKS, plain, tmp_path, executor) == [plain(pack) for pack in PACKS]


SCRIPT = """
import os, sys, time
from pathlib import Path
from tinygrok.training.sweep import SweepError, process_pools, sweep

def work(pack):
    Path(sys.argv[1], "began").touch()
    time.sleep(1000)

def main():
    try:
        sweep([[{"x": 1}], [{"x": 2}]], work, sys.argv[1], process_pools(2), patience=8)
    except SweepError as error:
        print(error)

GUARD
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("guard", "message"),
    [
        ("main()", "no worker came up; a script that starts some needs `if __name__"),
        ('if __name__ == "__main__":\n    main()', "no pack was finished for 8 s; 0 of 2 packs"),
    ],
    ids=["no guard", "workers that hang"],
)
def test_a_script_ends_whatever_its_workers_do(tmp_path, guard, message):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("GUARD", guard))
    command = [sys.executable, str(script), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert message in done.stdout
    assert done.stdout.count("\n") == 1
    assert (tmp_path / "began").exists() == ("8 s" in message)


@pytest.mark.slow
@pytest.mark.parametrize("address", ["", "tls://127.0.0.1:9", "ucx://127.0.0.1:9", "nonsense://"])
def test_schedulers_that_cannot_be_reached_are_one_line(tmp_path, address):
    pytest.importorskip("distributed")
    example = Path(__file__).parent.parent / "examples" / "phase_diagram.py"
    command = [sys.executable, str(example), "--quick", "--scheduler", address]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("phase_diagram.py: error: --scheduler")
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_errors_name_the_pack_and_keep_the_rest(tmp_path):
    for executor in (None, partial(ThreadPoolExecutor, 2)):
        with pytest.raises(SweepError, match=r"'x': 4.*ValueError: no such thing"):
            sweep(PACKS, raises, tmp_path, executor)
        assert len(list(tmp_path.glob("*.json"))) == 5, "the other packs were not finished"


@pytest.mark.slow
def test_workers_end_with_a_killed_driver(tmp_path):
    """SIGKILL to a driver with worker processes: no worker is left a moment later."""
    example = Path(__file__).parent.parent / "examples" / "phase_diagram.py"
    flags = [
        "--p",
        "23",
        "--width",
        "40",
        "--steps",
        "3000",
        "--grid",
        "4",
        "--workers",
        "2",
        "--no-plot",
        "--out",
        "x",
    ]
    process = subprocess.Popen(
        [sys.executable, str(example), *flags], cwd=tmp_path, stdout=subprocess.DEVNULL
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        process.kill()
        pytest.skip("this system does not list child processes")
    while len(workers := children.read_text().split()) < 2 and process.poll() is None:
        time.sleep(0.05)
    time.sleep(0.5)
    process.kill()
    process.wait()
    end = time.monotonic() + 20
    while (
        alive := [pid for pid in workers if Path(f"/proc/{pid}/cmdline").exists()]
    ) and time.monotonic() < end:
        time.sleep(0.1)
    assert not alive


@pytest.mark.slow
def test_a_killed_driver_resumes(tmp_path):
    """SIGKILL to the driver of a phase diagram, three times; the finished sweep equals the
    undisturbed one."""
    example = Path(__file__).parent.parent / "examples" / "phase_diagram.py"
    flags = [
        "--p",
        "23",
        "--width",
        "40",
        "--steps",
        "150",
        "--grid",
        "4",
        "--strengths",
        "0",
        "5",
        "--pack",
        "4",
        "--no-plot",
    ]
    command = [sys.executable, str(example), *flags]
    subprocess.run([*command, "--out", "straight"], cwd=tmp_path, check=True, capture_output=True)
    times, packs = {}, tmp_path / "killed" / "packs"
    for kill in range(1, 4):  # the moment that the next pack is finished
        resume = ["--resume"] if packs.exists() else []
        process = subprocess.Popen(
            [*command, "--out", "killed", *resume], cwd=tmp_path, stdout=subprocess.DEVNULL
        )
        while len(list(packs.glob("*.json"))) < kill and process.poll() is None:
            time.sleep(0.005)
        process.kill()
        process.wait()
        for path in packs.glob("*.json"):
            times.setdefault(path.name, path.stat().st_mtime_ns)
    assert len(times) >= 3
    subprocess.run(
        [*command, "--out", "killed", "--resume"], cwd=tmp_path, check=True, capture_output=True
    )
    straight, killed = (
        {p.name: p.read_bytes() for p in (tmp_path / name / "packs").glob("*.json")}
        for name in ("straight", "killed")
    )
    assert straight == killed
    assert len(straight) == 8
    for name, stamp in times.items():
        assert (tmp_path / "killed" / "packs" / name).stat().st_mtime_ns == stamp, (
            "a finished pack was run again"
        )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Dask warns of ports in use and of its own deprecations
def test_dask_cluster_with_a_worker_killed(tmp_path):
    distributed = pytest.importorskip(
        "distributed", reason="Dask is not installed (the cluster extra)"
    )
    log = str(tmp_path / "log")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        executor = client.get_executor(retries=5)
        assert sweep(PACKS, partial(dies_once, log=log), tmp_path / "out", executor) == EXPECTED
    assert (tmp_path / "log.died").exists()
    assert sorted(set(runs(log))) == list(range(6))
