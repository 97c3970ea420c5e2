"""The border: integers of any type that come in become int64, or one line says why they cannot."""

import numbers

import numpy as np

from .errors import InputError

INT64 = 2**63
ROUNDED = 2**53  # a float beyond it may have been another integer


def integers(x, what: str, low: float = -INT64, high: float = INT64 - 1) -> np.ndarray:
    """x as int64, every entry in low..high; what is int64 is not copied.

    x   a number, a list, or an array: of any integer type, of whole floats up to 2^53, of objects
    Python's integers (dtype object) where the limits allow what needs more than 64 bits. Raises
    InputError for fractions, nan, text, None and booleans: a mask is no list of numbers.

    >>> integers(np.array([3, 250], np.uint8), "labels", 0, 255)
    array([  3, 250])
    """
    given = np.asarray(x) if hasattr(x, "dtype") else np.array(x, dtype=object)
    if given.size == 0:
        return given.astype(np.int64)
    if given.dtype.kind not in "iu":
        whole = [_whole(entry, what) for entry in given.ravel().tolist()]
        given = np.array(whole, dtype=object).reshape(given.shape)
    smallest = int(given.min())
    largest = int(given.max())
    if smallest < low or largest > high:
        wrong = smallest if smallest < low else largest
        open_above = smallest < low and high == INT64 - 1
        bounds = f"be at least {low}" if open_above else f"lie in {low}..{high}"
        raise InputError(f"{what} must {bounds}, not {wrong}")
    fits = smallest >= -INT64 and largest < INT64
    return given.astype(np.int64 if fits else object, copy=False)


def integer(x, what: str, low: float = -INT64, high: float = INT64 - 1) -> int:
    """A single number, by the rules of integers.

    >>> integer(np.uint8(97), "the modulus", 2) ** 2
    9409
    """
    fits = type(x) is int and low <= x <= high
    return x if fits else integers(x, what, low, high).item()


def rates(x, what: str, members: int) -> np.ndarray:
    """A finite float not below 0, or one a member, as floats (members,).

    >>> rates(0.1, "the learning rate", 2)
    array([0.1, 0.1])
    """
    try:
        found = np.broadcast_to(np.asarray(x, dtype=float), (members,))
    except (TypeError, ValueError):
        raise InputError(f"{what} must be a number, or {members}, not {x!r:.40}") from None
    if not np.all((found >= 0) & np.isfinite(found)):
        raise InputError(f"{what} must be finite and at least 0, not {x!r:.40}")
    return found


def _whole(x, what: str) -> int:
    is_integer = isinstance(x, numbers.Integral) and not isinstance(x, bool)
    if is_integer or (isinstance(x, float) and x.is_integer() and abs(x) <= ROUNDED):
        return int(x)
    raise InputError(f"{what} must be integers, not {x!r:.40}")
