"""Tiny runs of the examples in forked processes that are killed, interrupted or starved, and what
they leave behind, to compare bit by bit.

A moment is a number of calls and returns since the start of the example, as sys.setprofile counts
them: the same number is the same place in every run, so that a failure can be repeated."""

import atexit
import importlib
import json
import os
import resource
import select
import shlex
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

EXAMPLES = Path(__file__).parent.parent / "examples"
sys.path[:0] = [str(EXAMPLES), str(EXAMPLES.parent)]

from tinygrok import cli  # noqa: E402  first: it sets up BLAS threads before NumPy loads

import numpy as np  # noqa: E402  isort: skip

OUT = "results"  # the folder of every run, inside one of its own
SECONDS = 120  # until a run counts as one that hangs
CHECKPOINTED = "--save-seconds 0"  # a checkpoint after every step
LCG = "--width 8 --heads 2 --context 8 --measure-every 2 --test-rows 8"
CASES = {
    "grok_addition": "--p 13 --width 16 --steps 40 --log-every 10 --dropout 0.2 --batch-size 20",
    "corrupted_labels": "--p 13 --width 20 --steps 20 --batch-size 32 --seeds 2 --log-every 5"
    " --regularizer batchnorm",
    "grok_polynomials": "--quick --p 11 --width 16 --steps 20 --seeds 2",
    "neuron_dynamics": "--quick --p 11 --width 12 --steps 20",
    "grok_optimizers": "--quick --p 11 --width 8 --steps 10",
    "in_context": "--quick --steps 8 --measure-every 2 --width 8 --depth 1",
    "in_context_phases": "--quick --steps 3 --width 8 --depth 1",
    "predict_lcg": f"--steps 8 {LCG}",
    "autoinit": "--model mlp --steps 4 --tune-steps 2 --batch 4 --measure-every 2"
    " --inits off kaiming --lr 0.01 --width 8 --depth 2 --data IMAGES",
    "autoinit_maps": "--quick --grid 2 --depth 2 --width 8 --steps 3 --inputs 4 --vgg-steps 0",
    "lcg_scaling": "--moduli 16 32 --steps 3",
    "phase_diagram": "--quick --p 11 --width 8 --steps 10",
    "width_scan": "--quick --p 11 --widths 8 12 --steps 10",
    "pruning_phases": "--quick --p 7 --width 8 --phases Coexistence --log-every 100",
    "critical_init": "--width 20 --depth 4 --networks 2 --grid 2 --batch 4 --probes 1",
    "analytic_weights": "--p 11",
    "phase_networks": "--mlp --grid 2 --networks 1 --mu 1",
    "training_maps": "--grid 2 --depth 2 --width 8 --steps 4 --trial 2 --batch 4 --lr 0.01 0.1"
    " --workers 0 --data IMAGES",
    "deep_mixer": "--mu 1 0.5 --depth 2 --width 4 --hidden 4 4 --steps 4 --batch 4 --lr 0.1"
    " --measure-every 2 --workers 0 --data IMAGES",
}
PROBES = {  # which open what the example leaves, and their flags
    "in_context": ("in_context_probe", "--grid-tasks 1 --draws 2"),
    "predict_lcg": ("lcg_probe", "--rows 5"),
}
SWEEPS = {"lcg_scaling", "phase_diagram", "in_context_phases"}  # a file a part
SWEEPS |= {"critical_init", "analytic_weights", "grok_optimizers", "width_scan", "pruning_phases"}
SWEEPS |= {"phase_networks", "training_maps", "deep_mixer", "autoinit_maps"}
STATE = {name: "config.json" if name in SWEEPS else "checkpoint.npz" for name in CASES}
STATE["autoinit"] = "off-0.01-0.npz"


class Failure(Exception):
    """A trial that did not end as it must."""


def require(holds, what: str, ended: "Ended | None" = None) -> None:
    if not holds:
        raise Failure(what if ended is None else f"{what}\n{ended.text()}")


# -- processes -------------------------------------------------------------------------------------


class Ended(NamedTuple):
    """How a process ended: its exit code (minus the signal that killed it) and what it said."""

    code: int
    out: str
    err: str

    def text(self) -> str:
        return f"exit code {self.code}\n{self.out[-1500:]}\n{self.err[-3000:]}"


class Child:
    """A forked process that runs an example as `python examples/NAME.py WORDS` would, in a folder.

    prepare   what the process does first: limits, signals, moments
    """

    def __init__(self, example: str, words: list[str], cwd: Path, prepare: Callable):
        module = importlib.import_module(example)
        out, err = (os.pipe() for _ in range(2))
        self.began = time.monotonic()
        self.pid = os.fork()
        if not self.pid:
            os.dup2(out[1], 1)
            os.dup2(err[1], 2)
            os.closerange(3, 256)
            _become(module, words, cwd, prepare)
        for pipe in (out, err):
            os.close(pipe[1])
        self.pipes = {out[0]: b"", err[0]: b""}

    def signal(self, number: int) -> None:
        """Unless it has ended: it stays a zombie until `wait`."""
        os.kill(self.pid, number)

    def sleep(self, seconds: float) -> None:
        """Until so many seconds after its start."""
        time.sleep(max(0.0, self.began + seconds - time.monotonic()))

    def wait(self) -> Ended:
        """Until it and its workers have ended. Failure for one that hangs."""
        texts = dict(self.pipes)
        pipes = set(self.pipes)
        while pipes:
            left = self.began + SECONDS - time.monotonic()
            ready = select.select(list(pipes), [], [], max(left, 0))[0]
            if not ready:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise Failure(f"it, or a worker of it, still ran after {SECONDS} s")
            for pipe in ready:
                data = os.read(pipe, 65536)
                texts[pipe] += data
                if not data:
                    os.close(pipe)
                    pipes.remove(pipe)
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return Ended(code, *(text.decode(errors="replace") for text in texts.values()))


def _become(module, words: list[str], cwd: Path, prepare: Callable) -> None:
    """In the forked process: the example, from its first line to the exit code."""
    code = 1
    try:
        os.setpgid(0, 0)  # Ctrl-C is for the one that forked
        for s in (signal.SIGTERM, signal.SIGHUP):  # nohup, and a shell's &, have some ignored
            signal.signal(s, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(cwd)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        sys.argv = [module.__file__, *words]
        prepare()
        cli.main(module.main)
    except SystemExit as end:
        sys.setprofile(None)
        code = end.code or 0
    except BaseException:
        sys.setprofile(None)
        traceback.print_exc()
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


# What a process prepares.


def nothing() -> None:
    pass


def at_moments(acts: dict[int, Callable]) -> None:
    """Act at moments of the example; an act counts no moments."""
    count = 0

    def watch(frame, event, argument):
        nonlocal count
        if argument is sys.setprofile:
            return
        count += 1
        if count in acts:
            acts[count]()

    sys.setprofile(watch)


FILE_CALLS = {"open", "write", "close", "fsync", "replace", "rename", "unlink", "mkdir", "truncate"}


def count_moments(path: Path) -> None:
    """Write the moments of a run, and those of the calls that touch files, when it ends."""
    moments = [0]
    of_files = []

    def watch(frame, event, argument):
        if argument is sys.setprofile:
            data = {"all": moments[0], "files": of_files}
            path.write_text(json.dumps(data))
            return
        moments[0] += 1
        if event.startswith("c_") and argument.__name__ in FILE_CALLS:
            of_files.append(moments[0])

    sys.setprofile(watch)


def send(number: int) -> Callable:
    return lambda: os.kill(os.getpid(), number)


def small_disk(size: int) -> None:
    """No file may become longer than size bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def failing_disk(calls: dict[str, int], error: int, once: bool) -> None:
    """os.NAME fails at its n-th call, and, unless once, ever after."""
    for name, n in calls.items():
        setattr(os, name, _failing(getattr(os, name), n, error, once))


def _failing(function: Callable, n: int, error: int, once: bool) -> Callable:
    count = 0

    def fails(*args, **kwargs):
        nonlocal count
        count += 1
        if count == n or (count > n and not once):
            raise OSError(error, os.strerror(error))
        return function(*args, **kwargs)

    return fails


# -- what a run leaves -----------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, object]:
    """{name: what it holds} of all files but those of earlier runs, without dates and times."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or name.startswith("earlier-"):
            continue
        if path.suffix == ".npz":
            found[name] = _arrays(path)
        elif path.suffix == ".json":
            found[name] = _timeless(json.loads(path.read_text()))
        elif path.name == ".tinygrok":
            found[name] = set(path.read_text(errors="replace").split())
        else:
            found[name] = path.read_bytes()
    return found


def _arrays(path: Path) -> dict[str, object]:
    """Type, shape and bytes of every array, and the dictionary beside them."""
    found = {}
    with np.load(path, allow_pickle=False) as arrays:
        for name, x in arrays.items():
            found[name] = (x.dtype.str, x.shape, x.tobytes())
        if "meta" in arrays:
            found["meta"] = json.loads(arrays["meta"].tobytes())
    return found


MOMENTARY = ("command", "date", "sha256", "second", "peak")  # in names of what no two runs share


def _timeless(x):
    if isinstance(x, dict):
        kept = {k: v for k, v in x.items() if not any(word in k for word in MOMENTARY)}
        return {name: _timeless(value) for name, value in kept.items()}
    return [_timeless(value) for value in x] if isinstance(x, list) else x


def require_equal(found: dict, expected: dict, where: str = "") -> None:
    """Failure that names the first file, and the first thing in it, that differs."""
    for name in sorted({*found, *expected}, key=str):
        require(name in found, f"{where}{name} is missing")
        require(name in expected, f"{where}{name} is too much")
        one, other = found[name], expected[name]
        if isinstance(one, dict) and isinstance(other, dict):
            require_equal(one, other, f"{where}{name}: ")
        equal = one == other or repr(one) == repr(other)  # nan is nan
        require(equal, f"{where}{name} is another than that of the undisturbed run")


def all_bytes(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# -- checks of what was said -----------------------------------------------------------------------

SAID = ("error:", "interrupted", "To go on:", "  ", "is not saved:", "nobody reads", "stopped:")


def require_polite(ended: Ended) -> Ended:
    """No traceback, and no line that is not one of ours."""
    for line in ended.err.splitlines():
        ours = not line or any(words in line for words in SAID)
        require(ours and not line.startswith("Traceback"), f"it says {line!r}", ended)
    return ended


def require_refusal(ended: Ended) -> None:
    """Exit code 2 and one line."""
    require(ended.code == 2, "not refused", ended)
    require(ended.err.count("\n") == 1 and "error:" in ended.err, "not one line", ended)


def command_to_go_on(ended: Ended) -> list[str] | None:
    """The words of the command that an interrupted run prints."""
    _, found, command = (ended.out + ended.err).partition("To go on:\n")
    return shlex.split(command.splitlines()[0])[2:] if found else None
