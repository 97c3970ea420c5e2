"""Long parts of gpu_check.py: papers' settings on a GPU, by the existing examples."""

import shlex
import sys
from pathlib import Path
from typing import NamedTuple

from _gpu_rows import Row

from tinygrok.disk.reader import read_json

EXAMPLES = Path(__file__).parent
LIMIT = 570  # seconds until a long part gets Ctrl-C: it saves, and the next call goes on


class Long(NamedTuple):
    """title; minutes on an H200 (an estimate, not measured); words: an example and its flags, or
    what Python runs; state: the file in its folder that --resume goes on from."""

    title: str
    minutes: str
    words: str
    state: str = "checkpoint.npz"


# Of the estimates: 6.3 PFLOP at 60 TFLOP/s for the diagram; 0.7 TFLOP a step in context; the flags
# of the last two are those of the settings that the papers' authors trained for hours.
LONG = {
    "phase-diagram": Long(
        "17 x 17 x 4 networks of corrupted labels, at the paper's size",
        "4 to 8",
        "phase_diagram.py --pack 128 --tf32",
        "config.json",
    ),
    "in-context": Long(
        "held-out tasks mod 17: 256 of 289 tasks, depth 4, width 256",
        "25 to 30",
        "in_context.py --p 17 --tasks 256 --alpha 0.8 --shots 24 --depth 4 --width 256 --heads 4"
        " --batch 512 --lr 5e-4 --warmup 1000 --weight-decay 1.5 --schedule cosine"
        " --steps 50000 --measure-every 500 --tf32",
    ),
    "in-context-paper": Long(
        "held-out tasks mod 29: 512 of 841 tasks, depth 4, width 512, a fifth of the steps",
        "35 to 45",
        "in_context.py --preset paper --alpha 0.8 --lr 3e-4 --warmup 2000"
        " --steps 40000 --measure-every 500 --tf32",
    ),
    "unseen-modulus": Long(
        "moduli that were never trained on, 97 to 307, context 96, depth 4, width 256",
        "15 to 20",
        "predict_lcg.py --preset unseen --moduli 97 307 --context 96 --depth 4 --width 256"
        " --heads 8 --batch 256 --steps 40000 --measure-every 500"
        " --test-moduli 243 256 225 288 200 --tf32",
    ),
    "two-to-32": Long(
        "the network of modulus 2^32, tokens a second; a quarter of the batch, which fits",
        "2",
        "predict_lcg.py --preset paper-2^32 --batch 128 --steps 60 --warmup 10 --measure-every 60"
        " --test-rows 64 --test-draws 8 --tf32",
    ),
    "benchmark": Long(
        "the whole table of benchmark.py, with torch.compile and peak memory",
        "15 to 20",
        "benchmark.py --workload all",
        "config.json",
    ),
    "suite": Long(
        "the tests that take a device, on this one", "5 to 9", "-m pytest -m 'not slow' -k cupy -q"
    ),
}


def command(name: str, spec: str, out: Path) -> list[str]:
    """What runs a long part; it goes on where an earlier call has stopped it."""
    words = shlex.split(LONG[name].words)
    if not words[0].endswith(".py"):
        return [sys.executable, *words, str(EXAMPLES.parent / "tests")]
    folder = out / name
    flags = ["--device", spec, "--out", str(folder)]
    if (folder / LONG[name].state).exists():
        flags.append("--resume")
    return [sys.executable, str(EXAMPLES / words[0]), *words[1:], *flags]


def results(folder: Path) -> list[Row]:
    """The single numbers of a finished run."""
    if not (folder / "run.json").exists():
        return []
    found = read_json(folder / "run.json")["results"]
    single = {name: x for name, x in found.items() if isinstance(x, int | float | str)}
    return [{"check": name, "value": x, "passed": None} for name, x in single.items()]
