"""The clock of benchmark.py: seconds of a step, of several candidates in turns."""

import time
from itertools import pairwise

import numpy as np

TURN = 0.25  # seconds after which a turn takes no further step


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


def turns(dev, candidates, repeats, steps, on_turn=lambda turn: None):
    """Seconds of a step of every candidate, over turns taken in a circle: {name: one value for each
    turn, the median of its steps}.

    50 ms of rest before a turn let the spinning threads of the candidate before go to sleep. The
    first turn warms up (and compiles), the first step of a turn fills the cache: not counted. A
    turn has as many steps as asked for, but after TURN seconds, and a counted step, no further
    one. on_turn(turn) is called after every turn."""
    mark, seconds = clock(dev)
    found = {name: [] for name in candidates}
    for turn in range(repeats + 1):
        for name, step in candidates.items():
            time.sleep(0.05)
            began = time.perf_counter()
            marks = [mark()]
            for done in range(steps):
                if done > 1 and time.perf_counter() - began > TURN:
                    break
                step()
                marks.append(mark())
            of_steps = [seconds(a, b) for a, b in pairwise(marks[1:])]
            if turn:
                found[name].append(float(np.median(of_steps)))
        on_turn(turn)
    return found


def interleaved(dev, candidates, repeats, steps):
    """Median seconds of a step of every candidate, over its turns."""
    found = turns(dev, candidates, repeats, steps)
    return {name: float(np.median(of_turns)) for name, of_turns in found.items()}
