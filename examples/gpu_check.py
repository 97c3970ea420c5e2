"""Prove the CuPy path on a GPU: numbers, bits, memory, step times, in under nine minutes.

    python examples/gpu_check.py                     # all parts but the long ones
    python examples/gpu_check.py --quick             # fewer cases of each, three minutes
    python examples/gpu_check.py --only kernels audit
    python examples/gpu_check.py --list              # the parts, with their time limits
    python examples/gpu_check.py --only in-context   # a long part, by its name; --long: all of them

Every part is a process of its own with a time limit, so that one which fails, hangs or crashes does
not take the others along. DIR/gpu_check.md has the tables, DIR/run.json the same numbers,
DIR/output.txt what the parts printed. Exit code 0: all passed; 1: a part did not; 2: there is no
GPU, or a flag is wrong. It needs the extras gpu and test; where PyTorch with CUDA is installed, it
takes part in the timings.
"""

from tinygrok import cli  # first: it sets up BLAS threads before NumPy loads

import importlib.util  # isort: skip
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _gpu_long import LIMIT, LONG, command, results
from _gpu_parts import PARTIAL, PARTS
from _gpu_rows import failed
from _gpu_tables import markdown, summary

from tinygrok.disk.writer import atomic_write
from tinygrok.engine.device import find_cupy, get_device

SCRIPT = Path(__file__).with_name("_gpu_parts.py")
ENDING = 30  # seconds that a long part has to save


def arguments(argv=None):
    p = cli.bare_parser("gpu_check", __doc__)
    add = p.add_argument
    only = f"run these: {', '.join(PARTS)}; or long ones: {', '.join(LONG)}"
    every = "run all long parts, one after another: see --list"
    out = Path("runs/gpu_check")
    add("--only", nargs="+", metavar="PART", choices=[*PARTS, *LONG], help=only)
    add("--long", action="store_true", help=every)
    add("--list", action="store_true", help="print the parts and their time limits, and end")
    add("--quick", action="store_true", help="fewer cases of each part, three minutes")
    add("--device", default="cuda", metavar="{cuda,cuda:1}", help="which GPU")
    add("--out", type=cli.folder, default=out, metavar="DIR", help="folder for results")
    p.set_defaults(seed=0)
    args = cli.parse(p, argv)
    check(args)
    return args


def check(args) -> None:
    """Refuse what would have no effect, or could not be run."""
    if args.list and (args.only or args.long or args.quick):
        raise cli.InputError("--list lists every part: leave out the other flags")
    if args.long and args.only:
        raise cli.InputError("--only names the parts: leave out --long")
    long = args.long or any(name in LONG for name in args.only or ())
    if args.quick and long:
        raise cli.InputError("a long part has no --quick")
    if not args.device.startswith("cuda"):
        raise cli.InputError(f"--device {args.device!r}: this checks a GPU, cuda or cuda:<number>")


def chosen(args) -> list[str]:
    """Names of parts, each once, in the order of the lists."""
    if args.only:
        return [name for name in (*PARTS, *LONG) if name in args.only]
    return list(LONG if args.long else PARTS)


def print_list() -> None:
    for name, part in PARTS.items():
        print(f"{name:<18}{part.seconds:>4} s at most     {part.title}")
    print(
        f"\nlong parts, by --only NAME or --long; each is interrupted after {LIMIT // 60} minutes,"
    )
    print("and the same command then goes on with it; minutes are estimates for an H200")
    for name, part in LONG.items():
        print(f"{name:<18}{part.minutes:>8} minutes  {part.title}")


def run(words: list[str], seconds: float, log, gentle: bool = False) -> int | None:
    """Exit code of a command; None when it was ended because its time was over.

    gentle: by Ctrl-C, so that it saves; it is killed when that takes too long too."""
    process = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        if gentle:
            process.send_signal(signal.SIGINT)
            wait(process, ENDING)
        return None
    except KeyboardInterrupt:  # the process got it too, from the terminal
        if gentle:
            wait(process, ENDING)
        raise
    finally:
        process.kill()
        wait(process, 5)


def wait(process, seconds: float) -> None:
    """For the end of a process; one that hangs in the driver may not end at all."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        print(f"process {process.pid} does not end")


def words_of(name: str, args, out: Path, rows: str) -> list[str]:
    """The command of a part; a short one writes its rows into a file."""
    if name in LONG:
        return command(name, args.device, out)
    quick = ["--quick"] if args.quick else []
    return [sys.executable, str(SCRIPT), name, args.device, rows, *quick]


def one(name: str, args, out: Path) -> tuple[dict, str]:
    """(verdict, seconds and rows of a part, what it printed)"""
    limit = LIMIT if name in LONG else PARTS[name].seconds
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder, "rows")
        rows.touch()
        printed = Path(folder, "output")
        began = time.perf_counter()
        with printed.open("wb") as log:
            code = run(words_of(name, args, out, str(rows)), limit, log, gentle=name in LONG)
        seconds = time.perf_counter() - began
        *lines, _ = rows.read_text().split("\n")  # the last one, if not empty, is not whole
        text = printed.read_text(errors="replace")
    found = [json.loads(line) for line in lines]
    if name in LONG and code == 0:
        found = results(out / name)
    part = {"verdict": verdict(name, code, found), "seconds": round(seconds, 1), "rows": found}
    return part, text


def verdict(name: str, code: int | None, rows: list[dict]) -> str:
    """ "passed", or what went wrong; of a long part that was interrupted, that it goes on."""
    if any(failed(row) for row in rows):
        return "failed"
    if code is None and name in LONG:
        return "interrupted: the same command goes on"
    if code is None:
        return "out of time" if name in PARTIAL else "time limit"
    if code:
        return f"exit code {code}"
    return "passed" if rows or name in LONG else "no rows"


def good(part: dict) -> bool:
    return part["verdict"].startswith(("passed", "out of time", "interrupted"))


def main(argv=None):
    args = arguments(argv)
    if args.list:
        return print_list()
    cupy, why = find_cupy()
    if cupy is None:
        raise cli.InputError(f"this checks a GPU, and needs CuPy and one: {why}")
    dev = get_device(args.device)  # refused here where there is none of its number
    if importlib.util.find_spec("pytest") is None:
        raise cli.InputError("pytest is not installed (pip install 'tinygrok[test]')")
    experiment = cli.Experiment(args, dev)
    print(f"device: {dev.reason}")
    out = experiment.open()
    parts = {}
    output = ""
    for name in chosen(args):
        parts[name], text = one(name, args, out)
        output += f"== {name}\n{text}\n"
        print(summary(name, parts[name]), flush=True)
        # After each part: whoever is stopped keeps what was done.
        wrong = [name for name, part in parts.items() if not good(part)]
        experiment.write({"failed": wrong, "parts": parts})
        for file, content in (("gpu_check.md", markdown(dev, parts)), ("output.txt", output)):
            atomic_write(out / file, lambda f, content=content: f.write(content.encode()))
    experiment.list_files()
    return int(bool(wrong))


if __name__ == "__main__":
    cli.main(main)
