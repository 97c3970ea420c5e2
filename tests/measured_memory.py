"""The estimate of an example's memory and what a run takes beyond what it had before, as JSON.

    python tests/measured_memory.py critical_init --width 500 --networks 2 --out /tmp/a

Linux: /proc/self/status knows the peak. Nothing is refused."""

import importlib
import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

from tinygrok import cli  # noqa: E402

import _memory  # noqa: E402  isort: skip


def status(name: str) -> int:
    """Bytes of a line of /proc/self/status: VmRSS now, VmHWM at most so far."""
    return 1024 * int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def main(example: str, *flags: str) -> None:
    module = importlib.import_module(example)
    at_first: list[tuple] = []

    def note(dev, **parts: float) -> None:
        at_first.append((parts, status("VmRSS")))

    _memory.require = note
    code = module.main([*flags, "--no-plot"])
    assert not code, f"{example} ended with {code}"
    parts, before = at_first[0]
    peak = status("VmHWM") - before
    print(json.dumps({"estimate": sum(parts.values()), "peak": peak, "parts": parts}))


if __name__ == "__main__":
    cli.main(lambda: main(*sys.argv[1:]))
