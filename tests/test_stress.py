"""A small part of tests/stress.py, and proof that it notices what it is there for."""

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
slow = pytest.mark.slow


def stress(*words, before="pass"):
    """The command, after a line of Python that may break something."""
    script = f"import sys; sys.path.insert(0, {str(TESTS)!r}); import stress; {before}"
    script += f"; sys.exit(stress.main({list(words)}))"
    command = [sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


@slow
@pytest.mark.parametrize("example", ["grok_addition", "phase_diagram", "analytic_weights"])
def test_runs_survive_kills_signals_and_damage(example):
    done = stress("1", "--examples", example)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "or refused what was damaged" in done.stdout


# What would go wrong, as a line of Python, and the words of the command that notice it.
CHECKPOINT = "from tinygrok.training import checkpoint as c"
BROKEN = {
    "written in place": (
        f"{CHECKPOINT}; c.atomic_write = lambda path, write: write(open(path, 'wb'))",
        "6 --kinds killed --examples grok_addition",
        "not a readable checkpoint",
    ),
    "no optimiser state": (
        f"{CHECKPOINT}; c._arenas = lambda run: {{'weight': run.params}}",
        "3 --kinds killed --examples grok_addition",
        "another than that of the undisturbed run",
    ),
    "no checksums": (
        "import zipfile; zipfile.ZipExtFile._update_crc = lambda *_: None",
        "3 --kinds read",
        "read as something else",
    ),
    "no command to go on": (
        "import tinygrok.cli as cli; cli.to_go_on = str",
        "6 --kinds interrupted --examples predict_lcg",
        "no command to go on, or a wrong one",
    ),
}


@slow
@pytest.mark.parametrize("what", BROKEN)
def test_what_is_broken_is_noticed_and_can_be_repeated(what):
    line, words, said = BROKEN[what]
    done = stress(*words.split(), before=line)
    assert done.returncode == 1, done.stdout
    assert said in done.stdout
    name = done.stdout.partition("FAILED ")[2].partition(": ")[0]
    again = stress("--repeat", name, before=line)
    assert again.returncode == 1
    assert f"FAILED {name}: " in again.stdout


TIMES = {"benchmark"}  # goes on too, but no two runs of it are the same


def test_every_example_that_goes_on_is_tried():
    goes_on = set()
    for path in (TESTS.parent / "examples").glob("[!_]*.py"):
        text = path.read_text()
        if any(flag in text for flag in ("add_checkpoints(", 'add("--resume"', "add_sweep(")):
            goes_on.add(path.stem)
    listed = stress("--examples", "none").stderr
    assert {name for name in goes_on if name not in listed} == TIMES


def test_a_name_that_is_none_is_refused():
    done = stress("--repeat", "killed:nothing:0")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
