"""The clock of benchmark.py: seconds of a step, of several candidates in turns."""

import time
from itertools import pairwise

import numpy as np

SECONDS = 15.0  # of turns, about, for a workload


def clock(dev):
    """time() -> a mark; seconds(mark, mark). A GPU is not waited for until the marks are read."""
    if dev.kind == "cpu":
        return time.perf_counter, lambda a, b: b - a

    def mark():
        event = dev.xp.cuda.Event()
        event.record()
        return event

    def seconds(a, b):
        b.synchronize()
        return dev.xp.cuda.get_elapsed_time(a, b) / 1e3

    return mark, seconds


def interleaved(dev, candidates, repeats, steps):
    """Median seconds of a step of every candidate, over turns taken in a circle.

    50 ms of rest before a turn let the spinning threads of the candidate before go to sleep. The
    first turn warms up (and compiles), the first step of a turn fills the cache: not counted."""
    mark, seconds = clock(dev)
    times = {name: [] for name in candidates}
    began = time.perf_counter()
    for turn in range(repeats + 1):
        for name, step in candidates.items():
            time.sleep(0.05)
            marks = [mark()]
            for _ in range(steps):
                step()
                marks.append(mark())
            times[name] += [seconds(a, b) for a, b in pairwise(marks[1:]) if turn]
        if turn > 2 and time.perf_counter() - began > SECONDS:
            break
    return {name: float(np.median(t)) for name, t in times.items()}
