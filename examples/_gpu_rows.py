"""What the parts of gpu_check.py report: rows, each a check with its numbers and a verdict."""

from collections.abc import Callable

import numpy as np

from tinygrok.engine.errors import one_line

Row = dict  # {"check": its name, numbers by name, "passed": True, False, or None: for information}


def several(name: str, check: Callable, *args) -> list[Row]:
    """The rows that check(*args) gives; where it raises, one that has failed and says by what.

    Whatever can go wrong on a card should be read in the report, and the other checks go on."""
    try:
        return list(check(*args))
    except Exception as error:
        text = one_line(f"{type(error).__name__}: {error}")
        return [{"check": name, "passed": False, "error": text}]


def checked(name: str, check: Callable, *args) -> Row:
    """The row {"check": name, **check(*args)}, or that of its error."""
    (row,) = several(name, lambda: [{"check": name, **check(*args)}])
    return row


def gap(found: np.ndarray, expected: np.ndarray, floor: float = 0.0) -> float:
    """Largest difference over the largest entry (or over the floor): 0 for equal arrays.

    Infinite where the shapes differ, and where a number that should be finite is not."""
    if found.shape != expected.shape:
        return float("inf")
    other = found != expected  # as nan is
    if not other.any():
        return 0.0
    difference = float(np.abs(found[other] - expected[other]).max())
    if not np.isfinite(difference):
        return float("inf")
    largest = float(np.abs(expected[np.isfinite(expected)]).max())
    return difference / max(largest, floor, 1e-300)


def failed(row: Row) -> bool:
    return row.get("passed") is False
