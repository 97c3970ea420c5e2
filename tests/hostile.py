"""Command lines of an example, each in a forked child: what became of it, with its time and memory.

    python tests/hostile.py grok_addition < command_lines.json    # prints outcomes as JSON
    python tests/hostile.py grok_addition                          # those of `walk`, made here

A child may take GIGABYTE more memory than its parent, and ends where the example opens its folder:
by then all that is refused must be refused. An example that has no folder runs to its end."""

import argparse
import contextlib
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))

from tinygrok import cli  # noqa: E402

GIGABYTE = 10**9
SECONDS = 2.0  # of the CPU: others may keep the machine busy
PATIENCE = 30  # seconds of the clock until a child is killed
ACCEPTED = 77
TRAINED = {"lcg_probe": "predict_lcg", "in_context_probe": "in_context"}  # what a probe opens
ESCAPES = ["\x1b[31mred", "two\nlines", "\udcff"]
# Flags of all examples, which come from one place: tried with the first example only.
COMMON = {"device", "dtype", "tf32", "threads", "out", "quick", "no_plot", "save_seconds"}
NUMBERS = ["-1", "0", "1.5", "nan", "inf", "-inf", "", "x", "1e308", "1e-308", "9" * 5000]
NUMBERS += [str(10**n) for n in (4, 6, 9, 19)]
TEXTS = ["", "x", "x" * 100_000, *ESCAPES]
PATHS = ["nowhere/file", ".", "/dev/null", "/proc/nowhere", "x" * 5000, "", *ESCAPES]


class Captured(Exception):
    """Carries the parser of an example."""


def parser_of(module) -> argparse.ArgumentParser:
    def parse_args(self, *_):
        raise Captured(self)

    kept = argparse.ArgumentParser.parse_args
    argparse.ArgumentParser.parse_args = parse_args
    try:
        module.arguments([])
    except Captured as found:
        return found.args[0]
    finally:
        argparse.ArgumentParser.parse_args = kept
    raise AssertionError("arguments() parses nothing")


def values_of(action: argparse.Action) -> list[str]:
    if action.nargs == 0:  # a switch: only --switch=value could be hostile
        return ["=1"]
    if action.choices is not None:
        return TEXTS
    if action.type in (Path, os.path.abspath):
        return PATHS
    return NUMBERS if action.type else TEXTS


def walk(module) -> list[list[str]]:
    """Every flag of an example with every hostile value of its kind."""
    lines = []
    for action in parser_of(module)._actions:
        common = action.dest in COMMON and module.__name__ != "grok_addition"
        if action.dest == "help" or common:
            continue
        count = action.nargs if isinstance(action.nargs, int) else 1
        flag = action.option_strings[-1] if action.option_strings else None
        for value in values_of(action):
            if flag is None:
                lines.append([value])
            elif action.nargs == 0:
                lines.append([flag + value])
            elif count > 1:
                lines.append([flag, *[value] * count])
                lines.append([flag, value])
            else:
                lines.append([f"{flag}={value}"])
        if action.nargs in ("+", "*"):
            lines.append([flag, *["7"] * 10_000])
            lines.append([flag])
    return lines


def run(module, line: list[str], folder: Path) -> dict:
    """The outcome of a command line in a child."""
    outputs = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    began = time.perf_counter()
    child = os.fork()
    if child == 0:
        be_the_example(module, line, folder, outputs)
    _, status, used = os.wait4(child, 0)
    texts = []
    for file in outputs:
        file.seek(0)
        texts.append(file.read().decode(errors="replace"))
    written = sorted(os.listdir(folder))
    return {
        "line": line,
        "code": os.waitstatus_to_exitcode(status),
        "out": texts[0],
        "error": texts[1],
        "written": written,
        "seconds": used.ru_utime + used.ru_stime,
        "clock": time.perf_counter() - began,
        "bytes": used.ru_maxrss * 1024 - before,
    }


def be_the_example(module, line, folder, outputs):
    """In the child: main() with the command line; never returns."""
    for number, file in enumerate(outputs, 1):
        os.dup2(file.fileno(), number)
    signal.alarm(PATIENCE)
    os.chdir(folder)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + GIGABYTE, size + GIGABYTE))
    cli.Experiment.open = accepted
    sys.argv = [f"{module.__name__}.py", *line]
    code = 1
    try:
        cli.main(module.main)
    except SystemExit as leaving:
        code = leaving.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def accepted(*_args, **_options):
    sys.stdout.flush()
    os._exit(ACCEPTED)


def verdict(outcome: dict) -> str:
    """Why an outcome is not acceptable; "" where it is."""
    code = outcome["code"]
    error = outcome["error"]
    if code not in (0, 2, ACCEPTED):
        return f"exit code {code}"
    if code == 2 and error.count("\n") != 1:
        return f"{error.count(chr(10))} lines"
    if code == 2 and not error.rstrip("\n").isprintable():
        return "control characters"
    if "not enough memory" in error:
        return "memory was full before it was refused"
    if code == 2 and len(error) > 1000:
        return f"{len(error)} characters"
    if outcome["written"]:
        return f"wrote {outcome['written']}"
    if outcome["seconds"] > SECONDS:
        return f"{outcome['seconds']:.1f} s"
    if outcome["bytes"] > GIGABYTE:
        return f"{outcome['bytes'] / 1e9:.1f} GB"
    return ""


def with_checkpoint(name: str, lines: list[list[str]], folder: str) -> list[list[str]]:
    """A probe's flags behind a checkpoint of one step."""
    script = str(EXAMPLES / f"{TRAINED[name]}.py")
    flags = ["--quick", "--steps", "1", "--no-plot", "--out", folder]
    subprocess.run([sys.executable, script, *flags], check=True, capture_output=True)
    checkpoint = f"{folder}/checkpoint.npz"
    return [[checkpoint, *line] if line[0].startswith("--") else line for line in lines]


def main(name: str, *without: str) -> None:
    sys.modules.update(dict.fromkeys(without))  # as if these were not installed
    module = importlib.import_module(name)
    for late in ("sklearn.datasets", "torch"):  # others' seconds, which are not counted
        with contextlib.suppress(ImportError):
            importlib.import_module(late)
    lines = walk(module) if sys.stdin.isatty() else json.load(sys.stdin)
    if lines is None:
        lines = walk(module)
    if name in TRAINED:
        lines = with_checkpoint(name, lines, tempfile.mkdtemp())
    outcomes = []
    for line in lines:
        with tempfile.TemporaryDirectory() as folder:
            outcome = run(module, line, Path(folder))
        outcomes.append(outcome | {"verdict": verdict(outcome)})
    json.dump(outcomes, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
