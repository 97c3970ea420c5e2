"""What every example shares: flags, refusals in one line, and the Experiment: its device, folder,
training, run.json, log.csv, figures and closing table.

Import it before NumPy: an example process runs one BLAS thread per worker thread, and BLAS reads
that when it loads."""

import argparse
import importlib.util
import json
import math
import os
import platform
import shlex
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path

for _variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

import numpy as np  # noqa: E402

from . import __version__  # noqa: E402
from .disk.reader import read_json  # noqa: E402
from .disk.writer import write_csv, write_json  # noqa: E402
from .engine.device import Device, get_device  # noqa: E402
from .engine.errors import InputError, one_line  # noqa: E402
from .training.checkpoint import (  # noqa: E402
    check_config,
    check_kept,
    load_training,
    save_training,
    save_weights,
)
from .training.folder import Folder  # noqa: E402
from .training.loop import NonFiniteLoss, Run  # noqa: E402
from .training.parallel import launched, world  # noqa: E402
from .training.progress import SIGNALS, Interrupt, Progress  # noqa: E402
from .training.sweep import SweepError, sweep  # noqa: E402

MOST_WORKERS = 16 * (os.cpu_count() or 1)  # threads, or processes, of a machine
LONGEST = 600  # characters of a message

# -- flags -----------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    choosing = False  # while flags are read that choose the defaults of others, --help waits

    def print_help(self, file=None):
        if not self.choosing:
            super().print_help(file)

    def exit(self, status=0, message=None):
        if status or not self.choosing:
            super().exit(status, message)

    def error(self, message):
        # The usage is a --help away.
        self.exit(2, f"{self.prog}: error: {one_line(message, LONGEST)}\n")


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Defaults behind the help, where there is one to show."""

    def _get_help_string(self, action):
        if action.default in (None, "") or action.default is False:
            return action.help
        return super()._get_help_string(action)


def checked(kind: type, low=None, high=None, open_low=False, open_high=False) -> Callable:
    """An argparse type: a finite number of a kind within bounds, refused with a line that states
    them."""
    bounds = []
    if low is not None:
        bounds.append(f"{'above' if open_low else 'at least'} {low}")
    if high is not None:
        bounds.append(f"{'below' if open_high else 'at most'} {high}")

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            noun = "an integer" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {noun}") from None
        finite = kind is int or math.isfinite(value)
        below = low is not None and (value < low or (open_low and value == low))
        above = high is not None and (value > high or (open_high and value == high))
        if below or above or not finite:
            raise argparse.ArgumentTypeError(f"{text} must be {' and '.join(bounds) or 'finite'}")
        return value

    return parse


def integer(low: int = 1, high: int = 10**9) -> Callable:
    return checked(int, low, high)


def real(low: float = 0.0, high: float = 1e9, open_low=False, open_high=False) -> Callable:
    return checked(float, low, high, open_low, open_high)


def positive() -> Callable:
    return real(0, open_low=True)


def fraction() -> Callable:
    """Of a whole: neither nothing nor all."""
    return real(0, 1, open_low=True, open_high=True)


def folder(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("name a folder")
    return Path(text)


def bare_parser(name: str, doc: str | None) -> _Parser:
    """A parser without flags, whose errors take one line.

    doc: the example's docstring, whose first line describes it; None under python -OO"""
    first = (doc or "").partition("\n")[0]
    return _Parser(prog=f"{name}.py", description=first, formatter_class=_Help)


def parser(name: str, doc: str | None) -> _Parser:
    """A parser with the flags that all examples have; the example adds its own."""
    p = bare_parser(name, doc)
    add = p.add_argument
    out = Path("runs") / name
    add("--device", default="auto", metavar="{auto,cpu,cuda,cuda:1}", help="where to compute")
    add("--dtype", default="float32", choices=["float32", "float64"], help="floating point type")
    add("--tf32", action="store_true", help="on a GPU: products on tensor cores, three digits")
    add("--threads", type=integer(1, MOST_WORKERS), help="CPU workers (default: one per core)")
    kernels = "on the CPU: NumPy's, or those that a C++ compiler makes for this processor"
    add("--kernels", default="numpy", choices=["numpy", "compiled"], help=kernels)
    add("--seed", type=integer(0, 10**18), default=0, help="drives every random draw")
    add("--out", type=folder, default=out, metavar="DIR", help="folder for results")
    add("--quick", action="store_true", help="a smaller setting, which takes under a minute")
    add("--no-plot", action="store_true", help="draw no figure")
    return p


def add_checkpoints(p: argparse.ArgumentParser, seconds: float, kept: bool = True) -> None:
    """The flags of an example that can be interrupted: --save-seconds and --resume; where it is
    `Experiment.train` that trains its one run (kept), --keep-every."""
    add = p.add_argument
    if kept:
        add("--keep-every", type=integer(), metavar="N", help="keep the weights of every N steps")
    add("--save-seconds", type=real(), default=seconds, help="seconds between checkpoints")
    add("--resume", action="store_true", help="go on from the checkpoint in --out")


def chosen(p: _Parser, argv: list[str] | None) -> argparse.Namespace:
    """The flags as they are so far, for those among them that choose the defaults of others: the
    example sets these before it parses, so that --help shows them."""
    p.choosing = True
    try:
        return p.parse_known_args(argv)[0]
    finally:
        p.choosing = False


def parse(p: _Parser, argv: list[str] | None, quick: dict | None = None) -> argparse.Namespace:
    """Parse; with --quick the values of `quick` replace defaults, and flags given by the user
    replace those. `changed`: names of the flags that differ from their defaults."""
    early = chosen(p, argv)
    defaults = {name: p.get_default(name) for name in config(early)}
    if early.quick and quick:
        p.set_defaults(**quick)
    args = p.parse_args(argv)
    args.changed = {name for name in config(args) if getattr(args, name) != p.get_default(name)}
    # In a notebook the example is a module, and the words are those given to its main.
    script = getattr(sys.modules.get(Path(p.prog).stem), "__file__", sys.argv[0])
    args.defaults = defaults
    args.command = [os.path.abspath(script), *(sys.argv[1:] if argv is None else argv)]
    return args


# Flags that only say where and how to compute and show.
HIDDEN = {"device", "tf32", "threads", "out", "quick", "no_plot", "resume", "save_seconds"}
HIDDEN |= {"workers", "scheduler", "command", "defaults", "changed"}
HIDDEN |= {"keep_every", "animate"}


def config(args: argparse.Namespace) -> dict:
    """The settings that determine the numbers of a run: every flag but the HIDDEN ones."""
    return {name: value for name, value in sorted(vars(args).items()) if name not in HIDDEN}


def flag(name: str) -> str:
    """The flag of a setting: test_rows -> --test-rows."""
    return "--" + name.replace("_", "-")


def words(settings: Mapping) -> list[str]:
    """Settings as words of a command line: {"depth": 2, "moduli": [5, 7], "repeats": True} ->
    --depth=2 --moduli 5 7 --repeats. What is None or False needs no word."""
    found = []
    for name, value in settings.items():
        if value is True:
            found.append(flag(name))
        elif isinstance(value, list):
            found += [flag(name), *map(str, value)]
        elif value is not None and value is not False:
            found.append(f"{flag(name)}={value}")
    return found


def refuse_idle(args: argparse.Namespace, why: str, *names: str) -> None:
    """Refuse flags that were changed where they have no effect; why: what they need, or what
    overrides them."""
    for name in names:
        if name in args.changed:
            raise InputError(f"{flag(name)} {why}")


def main(run: Callable[[], int | None]) -> None:
    """Run an example: an InputError ends it with one line and exit code 2, an interrupt with 130,
    and with the command that goes on. A rank that fails ends all; only rank 0 prints."""
    for s in SIGNALS:
        if s != signal.SIGINT and signal.getsignal(s) == signal.SIG_DFL:
            signal.signal(s, signal.default_int_handler)  # a polite kill is a Ctrl-C
    rank, size = launched()
    if rank or sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    with suppress(AttributeError):  # a notebook's output has all letters
        sys.stdout.reconfigure(errors="backslashreplace")  # those that the console does not have
    code = 1
    try:
        code = run()
    except (InputError, MemoryError) as error:
        text = f"not enough memory: {error}" if isinstance(error, MemoryError) else error
        say(f"{Path(sys.argv[0]).name}: error: {one_line(text, LONGEST)}")
        code = 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # there is no reader
        say(f"nobody reads the output{to_go_on()}")
    except OSError as error:
        say(f"{Path(sys.argv[0]).name}: error: {error}{to_go_on()}")
    except KeyboardInterrupt:
        code = 130
        if rank == 0:
            say(f"\ninterrupted{to_go_on()}")
        if size > 1 or "distributed" in sys.modules:
            leave(code)  # at once: others are not waited for, and Dask has no time to complain
    except Exception:
        if size == 1:
            raise
        traceback.print_exc()
    if size > 1 and code not in (None, 0, 130):
        say(f"rank {rank} of {size} ends the run")
        if "mpi4py.MPI" in sys.modules:  # the others wait for this rank
            sys.modules["mpi4py.MPI"].COMM_WORLD.Abort(code)
    sys.exit(code)


def say(text: str) -> None:
    with suppress(OSError):  # nobody may be there to read it
        print(text, file=sys.stderr, flush=True)


def leave(code: int) -> None:
    """End this process now, without waiting for ranks, worker processes or threads."""
    with suppress(OSError):
        sys.stdout.flush()
    os._exit(code)


# -- the experiment --------------------------------------------------------------------------------

CHECKPOINT = "checkpoint.npz"
SETTINGS = "config.json"  # of a sweep
PACKS = "packs"
WEIGHTS = "weights"  # of --keep-every


class Experiment:
    """A run of an example, from its flags to the closing table.

        experiment = Experiment(args)            # prints where it computes
        run = build(args, experiment.dev)        # may refuse the flags: nothing is written yet
        experiment.open(run)                     # the folder --out; --resume loads the checkpoint
        code = experiment.train(run, args.log_every, describe)
        if code is not None:                     # interrupted, or the loss was not finite
            return code
        experiment.finish(results, run.history, figures)

    trained, seconds: steps (train) or packs (sweep) of this process, and the time that they took.
    """

    current: "Experiment | None" = None  # the one that has a folder

    def __init__(self, args: argparse.Namespace, dev: Device | None = None):
        """A device that is given is not printed."""
        self.args = args
        self.out: Path = args.out
        self.folder: Folder | None = None  # of rank 0, once it is open
        self.state = self.out  # the file that --resume goes on from, once it is known
        self.dev = dev or self._device()
        self.began = time.perf_counter()
        self.trained = 0
        self.seconds = 0.0

    def _device(self) -> Device:
        args = self.args
        dev = get_device(args.device, args.dtype, args.threads, args.tf32, args.kernels)
        if dev.kind == "cuda":
            refuse_idle(args, "is for the CPU: add --device cpu", "kernels")
        args.kernels = dev.kernels  # without a compiler NumPy's
        tf32 = dev.tf32 and dev.dtype == np.float32
        print(f"device: {dev.reason}; {dev.dtype}{', products in TF32' if tf32 else ''}")
        return dev

    def open(self, run: Run | None = None, state: str = CHECKPOINT) -> Path:
        """Create the output folder; with --resume a run takes up the checkpoint in it. The files of
        an earlier run in it move to DIR/earlier-1 (2, ...): nothing is overwritten.

        state: the file in it that --resume goes on from."""
        resume = getattr(self.args, "resume", False)
        keep_every = getattr(self.args, "keep_every", None)
        if run is None and launched()[1] > 1:
            alone = "several ranks train one network, and this would do the same in each"
            raise InputError(f"{alone}: start it without mpirun")
        if keep_every and run is not None:
            check_kept(run, self.args.steps, keep_every)
        if resume and not (self.out / state).exists():
            raise InputError(f"--resume: there is no {state} in {self.out}")
        if run is not None:
            world()  # refused now, where the ranks do not find each other
            if resume:
                load_training(self.out / CHECKPOINT, run, config(self.args), self.args.defaults)
        if launched()[0] == 0:
            own = {"run.json", "log.csv", state}
            if state == SETTINGS:
                own.add(PACKS)
            if keep_every:
                own.add(WEIGHTS)
            try:
                self.folder = Folder(self.out, own, resume)
            except OSError as error:
                raise InputError(f"--out {self.out}: {error.strerror}") from error
            if self.folder.kept:
                print(f"kept the earlier run in {self.folder.kept}")
        self.state = self.out / state
        Experiment.current = self
        if run is not None:
            world().any(True)  # rank 0 has made the folder
            if resume:
                print(f"resumed at step {run.t}")
        return self.out

    def where(self, executor) -> dict:
        """How get_device makes the device of a worker; where an executor is given, one thread each
        or --threads."""
        names = ("device", "threads", "tf32", "kernels")
        given = {name: getattr(self.args, name) for name in names}
        if executor is not None:
            given["threads"] = self.args.threads or 1
        return given

    def saver(self, path: Path, **which: str) -> Callable:
        """save(run) into a file, with the settings and, of several runs, `which` it is.

        On a full disk the state before stays, and a later one may fit."""

        def save(run) -> None:
            try:
                save_training(path, run, config(self.args) | which)
                self.note_files()
            except OSError as error:
                say(f"step {run.t} is not saved: {error}")

        return save

    def keep(self, run: Run) -> None:
        """Every --keep-every steps: weights and settings into DIR/weights/step_00000100.npz.

        On a full disk those of one step are missing, and later ones may fit."""
        every = getattr(self.args, "keep_every", None)
        if not every or run.t % every:
            return
        try:
            save_weights(self.out / WEIGHTS, run, config(self.args))
            self.note_files()
        except OSError as error:
            say(f"the weights of step {run.t} are not kept: {error}")

    def note_files(self) -> list[str]:
        """List in the folder what runs left there, for those that come after."""
        return [] if self.folder is None else self.folder.note()

    def train(
        self,
        run: Run,
        log_every: int,
        describe: Callable[[dict], str],
        on_row: Callable[[dict], None] = lambda row: None,
        every: float = 2.0,
    ) -> int | None:
        """Train until args.steps as every example does: a progress line, checkpoints, Ctrl-C, a
        loss that is not finite. None when it got there, else the exit code to leave with.

        describe  a row of the history -> the text of the progress line
        on_row    what else to do with a row
        every     seconds between progress lines
        """
        args = self.args
        progress = Progress(args.steps, run.t, every)
        first = run.t
        began = time.perf_counter()

        def show(row: dict) -> None:
            on_row(row)
            progress(row["step"], describe(row))

        save = self.saver(self.out / CHECKPOINT)
        if launched()[1] > 1:
            save(run)
            print(f"Open MPI shows nothing after Ctrl-C{to_go_on()}", flush=True)
        when = (args.steps, log_every, show, save, args.save_seconds)
        with Interrupt() as interrupt:
            try:
                run.fit(*when, stop=lambda: world().any(interrupt()), on_step=self.keep)
            except NonFiniteLoss as error:
                print(f"stopped: {error}")
                broken = self.out / "nonfinite.npz"
                save_training(broken, run, config(args))
                print(f"the state is in {broken}; a lower --lr may help")
                world().any(True)  # rank 0 has written
                return 1
            finally:
                progress.close()
        self.trained = run.t - first
        self.seconds = time.perf_counter() - began
        world().any(True)
        if run.t < args.steps:
            print(f"interrupted at step {run.t}{to_go_on()}")
            return 130
        return 0 if launched()[0] else None

    def open_sweep(self, free: Sequence[str] = (), **more) -> Path:
        """The folder of a sweep, with its settings (and more): --resume refuses others, but for the
        `free` ones."""
        out = self.open(state=SETTINGS)
        settings = json.loads(json.dumps(config(self.args) | more))
        if self.args.resume:
            saved = self.args.defaults | read_json(out / SETTINGS)
            check_config(out, saved, settings, free=tuple(free))
        write_json(out / SETTINGS, settings)
        self.note_files()
        return out

    def sweep(self, packs, work: Callable, executor, unit: str, describe: str) -> list | None:
        """Results of work(pack) for every pack (training/sweep.py), with a line of progress; None
        when one failed. A pack is one unit: the word for it."""
        folder = self.out / PACKS
        progress = Progress(len(packs), every=10.0, unit=unit)
        began = time.perf_counter()
        counts = []  # the first: finished before

        def show(count: int, total: int) -> None:
            counts.append(count)
            progress(count, describe)

        try:
            work = partial(with_kernels, self.args.kernels, work)
            results = sweep(packs, work, folder, executor, show)
        except SweepError as error:
            print(f"stopped: {error}{to_go_on()}")
            return None
        except KeyboardInterrupt:
            print(f"\nfinished {unit}s are in {folder}")
            raise
        progress.close()
        self.trained = counts[-1] - counts[0]
        self.seconds = time.perf_counter() - began
        return results

    def finish(
        self,
        results: dict,
        history: Mapping | None = None,
        figures: Callable[[Path], None] | None = None,
        paper: dict[str, str] | None = None,
        title: str = "",
        shown: dict | None = None,
    ) -> None:
        """Write the files, print the closing table, list what is in the folder.

        history, figures   as in `write`
        paper              {result: the paper's number}, under a title
        shown              what to print instead of results
        """
        self.write(results, history, figures)
        print_table(results if shown is None else shown, paper or {}, title)
        self.list_files()

    def write(
        self,
        results: dict,
        history: Mapping | None = None,
        figures: Callable[[Path], None] | None = None,
    ) -> None:
        """Write run.json; of a history {quantity: column} log.csv; what figures(folder) draws."""
        if history is not None:
            write_csv(self.out / "log.csv", history)
        self._write_run(results)
        if figures is not None and self._plotting():
            figures(self.out)
        self.note_files()

    def _write_run(self, results: dict) -> None:
        """DIR/run.json: config, seed, versions, device, date, wall seconds, results."""
        versions = {"tinygrok": __version__, "numpy": np.__version__}
        versions["python"] = platform.python_version()
        record = {
            "command": [Path(self.args.command[0]).name, *self.args.command[1:]],
            "config": config(self.args),
            "seed": self.args.seed,
            "versions": versions,
            "device": self.dev.reason,
            "dtype": self.dev.dtype.name,
            "tf32": self.dev.tf32,
            "ranks": launched()[1],
            "machine": platform.machine(),
            "date": datetime.now().astimezone().isoformat(timespec="seconds"),
            "wall_seconds": round(time.perf_counter() - self.began, 3),
            "results": results,
        }
        write_json(self.out / "run.json", record)

    def _plotting(self) -> bool:
        """Whether to draw; says so when matplotlib is missing."""
        if self.args.no_plot:
            return False
        if importlib.util.find_spec("matplotlib") is None:
            print("no figure: matplotlib is not installed (pip install 'tinygrok[plot]')")
            return False
        return True

    def list_files(self) -> None:
        print(f"\nfiles in {self.out}: {', '.join(self.note_files())}")


def with_kernels(kernels: str, work: Callable, pack: Sequence[dict]) -> list[dict]:
    """work(pack), in a worker: refused where it has other kernels than the driver, as without a
    compiler. The last digits would differ from pack to pack."""
    found = get_device("cpu", threads=1, kernels=kernels)
    if found.kernels != kernels:
        raise InputError(f"no --kernels {kernels} on {platform.node()}: {found.reason}")
    return work(pack)


# -- the table -------------------------------------------------------------------------------------


def print_table(results: dict, paper: dict[str, str], title: str) -> None:
    """The closing table: every result, beside the paper's number where it has one."""
    texts = {name: _short(value) for name, value in results.items()}
    width = max(len(text) for text in texts.values())
    names = max(22, *(len(name) + 2 for name in texts))
    print(f"\n{'':<{names}}{'here':>{width}}   {title if paper else ''}")
    for name, text in texts.items():
        print(f"{name:<{names}}{text:>{width}}   {paper.get(name, '')}")


def _short(value) -> str:
    if isinstance(value, list):
        return " ".join(map(_short, value))
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    if value == 0 or 1e-2 <= abs(value) < 1e4:
        return f"{value:.4f}"
    return f"{value:.3g}"


# -- going on --------------------------------------------------------------------------------------


def to_go_on() -> str:
    """The shell command that goes on where this one stopped, from any folder and environment;
    nothing as long as there is no state to go on from."""
    experiment = Experiment.current
    if experiment is None or not ("resume" in experiment.args and experiment.state.exists()):
        return ""
    words = [sys.executable, *getattr(experiment.args, "command", sys.argv)]
    ranks = launched()[1]
    if ranks > 1:
        places = f"{os.environ.get('PATH')}{os.pathsep}{os.path.dirname(sys.executable)}"
        words = [shutil.which("mpirun", path=places) or "mpirun", "-n", str(ranks), *words]
    for name in ("out", "data"):
        path = vars(experiment.args).get(name)
        if path is not None:
            words = _with_path(words, f"--{name}", path)
    if "--resume" not in words:
        words.append("--resume")
    return f"\nTo go on:\n  {shlex.join(words)}"


def _with_path(words: list[str], flag: str, path: str | Path) -> list[str]:
    """A command with the absolute path of a flag, instead of what was given in one word or two.

    The last of several counts: what is left of a shortened flag does no harm."""
    kept = []
    before = ""
    for word in words:
        if flag not in (word, before) and not word.startswith(f"{flag}="):
            kept.append(word)
        before = word
    return [*kept, flag, os.path.abspath(path)]
