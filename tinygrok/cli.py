"""What every example shares: flags, refusals in one line, output folder, progress, Ctrl-C, run.json
and log.csv.

Import it before NumPy: an example process runs one BLAS thread per worker thread, and BLAS reads
that when it loads."""

import argparse
import csv
import importlib.util
import io
import json
import os
import platform
import shlex
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

for _variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

import numpy as np  # noqa: E402

from . import __version__  # noqa: E402
from .engine.device import Device, get_device  # noqa: E402
from .engine.errors import InputError  # noqa: E402
from .engine.files import atomic_write  # noqa: E402
from .training.checkpoint import load_training, save_training  # noqa: E402
from .training.loop import NonFiniteLoss, fit  # noqa: E402
from .training.parallel import launched, world  # noqa: E402

# -- flags -----------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}\n")  # one line; the usage is a --help away


def checked(kind: type, low=None, high=None, open_low=False, open_high=False) -> Callable:
    """An argparse type: a finite number of a kind within bounds, refused with a line that states
    them."""

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not {'an integer' if kind is int else 'a number'}"
            ) from None
        below = low is not None and (value < low or (open_low and value == low))
        above = high is not None and (value > high or (open_high and value == high))
        if below or above or value != value or value in (float("inf"), float("-inf")):
            bounds = [f"{'above' if open_low else 'at least'} {low}"] if low is not None else []
            bounds += [f"{'below' if open_high else 'at most'} {high}"] if high is not None else []
            raise argparse.ArgumentTypeError(f"{text} must be {' and '.join(bounds) or 'finite'}")
        return value

    return parse


def integer(low: int = 1, high: int | None = None) -> Callable:
    return checked(int, low, high)


def real(
    low: float | None = 0.0, high: float | None = None, open_low=False, open_high=False
) -> Callable:
    return checked(float, low, high, open_low, open_high)


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """A parser with the flags that all examples have; the example adds its own."""
    p = _Parser(
        prog=f"{name}.py",
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument(
        "--device", default="auto", metavar="{auto,cpu,cuda,cuda:1}", help="where to compute"
    )
    p.add_argument(
        "--dtype", default="float32", choices=["float32", "float64"], help="floating point type"
    )
    p.add_argument(
        "--tf32",
        action="store_true",
        help="on a GPU: float32 products on tensor cores, three digits",
    )
    p.add_argument(
        "--threads", type=integer(), default=None, help="CPU worker threads (default: one per core)"
    )
    p.add_argument("--seed", type=integer(0), default=0, help="drives every random draw")
    p.add_argument(
        "--out", type=Path, default=Path("runs") / name, metavar="DIR", help="folder for results"
    )
    p.add_argument(
        "--quick",
        action="store_true",
        help="a smaller setting that shows the effect in under a minute",
    )
    p.add_argument("--no-plot", action="store_true", help="draw no figure")
    return p


def parse(
    p: argparse.ArgumentParser, argv: list[str] | None, quick: dict | None = None
) -> argparse.Namespace:
    """Parse; with --quick the values of `quick` replace defaults, and flags given by the user
    replace those."""
    args = p.parse_args(argv)
    if args.quick:
        p.set_defaults(**quick or {})
        args = p.parse_args(argv)
    return args


def device(args: argparse.Namespace) -> Device:
    dev = get_device(args.device, args.dtype, args.threads, args.tf32)
    print(
        f"device: {dev.reason}; {dev.dtype}{', products in TF32' * (dev.tf32 and dev.dtype == np.float32)}"
    )
    return dev


def config(args: argparse.Namespace) -> dict:
    """The settings that determine the numbers of a run: every flag but those that only say where
    and how to compute and show."""
    hidden = {
        "device",
        "tf32",
        "threads",
        "out",
        "quick",
        "no_plot",
        "resume",
        "save_seconds",
        "workers",
        "scheduler",
    }
    return {k: v for k, v in sorted(vars(args).items()) if k not in hidden}


def main(run: Callable[[], int | None]) -> None:
    """Run an example: an InputError ends it with one line and exit code 2, an interrupt with 130. A
    rank that fails ends all; only rank 0 prints."""
    signal.signal(
        signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT)
    )  # a polite kill is a Ctrl-C
    (rank, size), code = launched(), 1
    if rank:
        sys.stdout = open(os.devnull, "w")
    try:
        code = run()
    except (InputError, MemoryError) as error:
        text = f"not enough memory: {error}" if isinstance(error, MemoryError) else error
        print(f"{Path(sys.argv[0]).name}: error: {text}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        pass
    except Exception:
        if size == 1:
            raise
        traceback.print_exc()
    if size > 1 and code:
        print(f"rank {rank} of {size} ends the run", file=sys.stderr, flush=True)
        if "mpi4py.MPI" in sys.modules:  # the others wait for this rank
            sys.modules["mpi4py.MPI"].COMM_WORLD.Abort(code)
    sys.exit(code)


# -- output ----------------------------------------------------------------------------------------

CHECKPOINT = "checkpoint.npz"


# What a run leaves in its folder; anything else in there belongs to the user.
RUN_FILES = ("run.json", "log.csv", "config.json", "packs", "*.npz", "*.png")


def output_folder(args: argparse.Namespace, resume: bool = False, state: str = CHECKPOINT) -> Path:
    """Create the output folder. The files of an earlier run in it move to DIR/earlier-1 (2, ...):
    nothing is overwritten.

    state: the file or folder in it that --resume goes on from."""
    out: Path = args.out
    if launched()[0]:
        return out
    try:
        if resume and not (out / state).exists():
            raise InputError(f"--resume: there is no {state} in {out}")
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(
            dir=out
        ):  # can we write here? better known now than after the training
            pass
        earlier = [] if resume else [path for pattern in RUN_FILES for path in out.glob(pattern)]
        if earlier:
            number = next(i for i in range(1, 10**6) if not (out / f"earlier-{i}").exists())
            kept = out / f"earlier-{number}"
            kept.mkdir()
            for path in earlier:
                path.rename(kept / path.name)
            print(f"kept the earlier run in {kept}")
    except OSError as error:
        raise InputError(f"--out {out}: {error.strerror}") from error
    return out


def write_json(path: Path, data: dict) -> None:
    text = json.dumps(_plain(data), indent=2, allow_nan=False) + "\n"
    atomic_write(path, lambda file: file.write(text.encode()))


def _plain(x):
    """What JSON can hold: NumPy numbers and arrays as numbers and lists, nan and infinity as null,
    paths as text."""
    if isinstance(x, dict):
        return {str(k): _plain(v) for k, v in x.items()}
    if isinstance(x, np.ndarray | np.generic):
        return _plain(x.tolist())
    if isinstance(x, list | tuple):
        return [_plain(v) for v in x]
    if isinstance(x, float) and not np.isfinite(x):
        return None
    return x if isinstance(x, str | int | float | None) else str(x)


def write_run(
    out: Path, args: argparse.Namespace, dev: Device, seconds: float, results: dict
) -> None:
    """DIR/run.json: config, seed, versions, device, date, wall seconds, results."""
    write_json(
        out / "run.json",
        {
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "config": config(args),
            "seed": args.seed,
            "versions": {
                "tinygrok": __version__,
                "python": platform.python_version(),
                "numpy": np.__version__,
            },
            "device": dev.reason,
            "dtype": dev.dtype.name,
            "tf32": dev.tf32,
            "ranks": launched()[1],
            "machine": platform.machine(),
            "date": datetime.now().astimezone().isoformat(timespec="seconds"),
            "wall_seconds": round(seconds, 3),
            "results": results,
        },
    )


def write_log(out: Path, history: dict[str, list]) -> None:
    """DIR/log.csv: a row per measurement; a column per member where there are several."""
    names, columns = [], []
    for name, values in history.items():
        for index, column in enumerate(np.asarray(values).reshape(len(values), -1).T):
            names.append(name if np.ndim(values[0]) == 0 else f"{name}_{index}")
            columns.append(column)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(zip(*columns, strict=True))
    atomic_write(out / "log.csv", lambda file: file.write(text.getvalue().encode()))


def plotting(args: argparse.Namespace) -> bool:
    """Whether to draw; says so when matplotlib is missing."""
    if args.no_plot:
        return False
    if importlib.util.find_spec("matplotlib") is None:
        print("no figure: matplotlib is not installed (pip install 'tinygrok[plot]')")
        return False
    return True


# -- while it runs ---------------------------------------------------------------------------------


class Interrupt:
    """Ctrl-C or SIGTERM asks the loop to end after the step at hand; a second Ctrl-C ends the
    process at once."""

    def __init__(self):
        self.asked = False

    def __enter__(self):
        self._before = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_):
        for s, handler in self._before.items():
            signal.signal(s, handler)

    def __call__(self) -> bool:
        return self.asked

    def _handle(self, signum, frame):
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


class Progress:
    """A progress bar by tqdm where that is installed and the output is a terminal, else a line
    every few seconds."""

    def __init__(self, total: int, start: int = 0, every: float = 2.0, unit: str = "step"):
        self.total, self.start, self.every, self.unit = total, start, every, unit
        self.began = self.last = time.monotonic()
        self.bar = None
        if sys.stderr.isatty() and importlib.util.find_spec("tqdm"):
            from tqdm import tqdm

            self.bar = tqdm(total=total, initial=start, unit=unit, dynamic_ncols=True)

    def __call__(self, step: int, text: str) -> None:
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(step - self.bar.n)
            return
        now = time.monotonic()
        if step >= self.total or now - self.last >= self.every:
            self.last = now
            rate = (step - self.start) / max(now - self.began, 1e-9)
            left = (
                f", {(self.total - step) / rate:.0f} s left" if rate and step < self.total else ""
            )
            print(
                f"{self.unit} {step:>{len(str(self.total))}}/{self.total}  {text}  {rate:.3g} {self.unit}s/s{left}",
                flush=True,
            )

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def train(
    args: argparse.Namespace,
    run,
    out: Path,
    log_every: int,
    describe: Callable[[dict], str],
    on_row=lambda row: None,
    every=2.0,
) -> int | None:
    """Train until args.steps as every example does: a progress line, checkpoints, --resume, Ctrl-C,
    a loss that is not finite. None when it got there, else the exit code to leave with.

    describe   a row of the history -> the text of the progress line;  on_row: what else to do with it
    """
    path, progress = out / CHECKPOINT, Progress(args.steps, run.t, every)

    def show(row: dict) -> None:
        progress(row["step"], describe(row))
        on_row(row)

    def save(run) -> None:
        save_training(path, run, config(args))

    with Interrupt() as interrupt:
        try:
            done = fit(
                run,
                args.steps,
                log_every,
                show,
                save,
                args.save_seconds,
                lambda: world().any(interrupt()),
            )
        except NonFiniteLoss as error:
            save_training(out / "nonfinite.npz", run, config(args))
            print(
                f"stopped: {error}\nthe state is in {out / 'nonfinite.npz'}; a lower --lr may help"
            )
            world().any(True)  # rank 0 has written
            return 1
        finally:
            progress.close()
    world().any(True)
    if not done:
        print(f"interrupted at step {run.t}; everything is in {path}. To go on:\n  {resume_hint()}")
        return 130
    return 0 if launched()[0] else None


def start(args: argparse.Namespace, run) -> Path:
    """The output folder; with --resume the run takes up the checkpoint in it."""
    out = output_folder(args, args.resume)
    world().any(True)  # rank 0 has made the folder
    if args.resume:
        load_training(out / CHECKPOINT, run, config(args))
        print(f"resumed at step {run.t}")
    return out


def resume_hint() -> str:
    """The command that goes on where this one stopped."""
    words = [Path(sys.executable).name, *sys.argv]
    return shlex.join([*words, *(["--resume"] if "--resume" not in words else [])])


def _short(value) -> str:
    if isinstance(value, list):
        return " ".join(map(_short, value))
    if not isinstance(value, float):
        return str(value)
    return f"{value:.4f}" if value == 0 or 1e-2 <= abs(value) < 1e4 else f"{value:.3g}"


def report(out: Path, results: dict, paper: dict[str, str], title: str) -> None:
    """The closing table: every result, beside the paper's number where it has one, and where the
    files are."""
    rows = [(k, _short(v), paper.get(k, "")) for k, v in results.items()]
    width = max(len(v) for _, v, _ in rows)
    names = max(22, *(len(name) + 2 for name in results))
    print(f"\n{'':<{names}}{'here':>{width}}   {title if paper else ''}")
    for name, value, reference in rows:
        print(f"{name:<{names}}{value:>{width}}   {reference}")
    print(
        f"\nfiles in {out}: {', '.join(sorted(f.name for f in out.iterdir() if not f.name.startswith('.')))}"
    )
