"""Sweeps: resumable, parallel, and nothing lost or run twice when workers or the driver die."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest

from tinygrok.training.sweep import SweepError, sweep

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
