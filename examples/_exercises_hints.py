"""What kind of error is it? Hints, each given only where the numbers of all cases say so.

A hint is a function of what was found of one tensor, case by case, and of the exercise; it returns
a sentence, or None where it does not fit."""

from collections.abc import Callable, Iterator
from itertools import combinations

import numpy as np
from _exercises_kinds import ROUNDING, Exercise, Found, close

ALMOST = 1e-3


def hint(exercise: Exercise, found: list[Found]) -> str:
    for kind in HINTS:
        text = kind(exercise, found)
        if text:
            return text
    return "no simple rule explains the difference: compare term by term, beginning with one entry"


def not_finite(exercise: Exercise, found: list[Found]):
    for one in found:
        count = np.count_nonzero(~np.isfinite(one.got))
        if count:
            reasons = "never written (np.empty), or 0/0, log 0, the root of a negative number"
            return f"{count} of {one.got.size} entries are nan or infinite: {reasons}"
    return None


def sign(exercise: Exercise, found: list[Found]):
    if all(close(-one.got, one.want) for one in found):
        return "every entry has the wrong sign"
    return None


def transposed(exercise: Exercise, found: list[Found]):
    """Of the last two axes."""
    flat = any(one.got.ndim < 2 for one in found)
    if not flat and all(close(one.got.swapaxes(-1, -2), one.want) for one in found):
        return "it is the transpose of what it should be"
    return None


def swapped(exercise: Exercise, found: list[Found]):
    for name in found[0].others:
        if name != found[0].name and all(close(one.got, one.others[name]) for one in found):
            order = ", ".join(exercise.returns)
            return f"it is what {name} should be: return ({order}), in this order"
    return None


def _axes(ndim: int) -> Iterator[tuple[int, ...]]:
    for count in range(1, ndim + 1):
        yield from combinations(range(ndim), count)


def _named(axes: tuple[int, ...]) -> str:
    return f"{'axis' if len(axes) == 1 else 'axes'} {', '.join(map(str, axes))}"


def _over(reduce: Callable, x: np.ndarray, axes: tuple[int, ...], shape: tuple) -> np.ndarray:
    """A sum or mean over axes, in a shape that has ones in their place, or does not."""
    kept = len(shape) == x.ndim
    return np.asarray(reduce(x, axis=axes, keepdims=kept))


def missing_sum(exercise: Exercise, found: list[Found]):
    """Axes too many, over which a sum, or a mean, gives the right result."""
    for axes in _axes(found[0].got.ndim):
        for what, reduce in (("sum", np.sum), ("mean", np.mean)):
            if all(close(_over(reduce, f.got, axes, f.want.shape), f.want) for f in found):
                return f"a {what} over its {_named(axes)} is missing"
    return None


def sum_too_much(exercise: Exercise, found: list[Found]):
    for axes in _axes(found[0].want.ndim):
        for what, reduce in (("summed", np.sum), ("averaged", np.mean)):
            if all(close(f.got, _over(reduce, f.want, axes, f.got.shape)) for f in found):
                return f"it is {what} over {_named(axes)} of what it should be: keep every entry"
    return None


def only_the_shape(exercise: Exercise, found: list[Found]):
    if all(close(one.got.reshape(-1), one.want.reshape(-1)) for one in found):
        return "the numbers are right, and only the shape is wrong"
    return None


def of_other_shape(exercise: Exercise, found: list[Found]):
    """After this all have the right shape."""
    if any(one.got.shape != one.want.shape for one in found):
        return "a gradient has the shape of what it is the gradient by"
    return None


def _factors(found: list[Found]) -> list[float] | None:
    """got = factor want for the entries that are wrong, two or more, in every case."""
    factors = []
    for one in found:
        entries = one.entries()
        got = one.got[entries]
        want = one.want[entries]
        size = (want**2).sum()
        factor = float((got * want).sum() / size) if size else 0.0
        if len(got) < 2 or factor == 0 or not close(got / factor, want):
            return None
        factors.append(factor)
    return factors


def _letters(sizes: dict[str, int]) -> dict[str, float]:
    """{how a factor is written: its value} for what sizes make, the simplest first."""
    values = {}
    for name, size in sizes.items():
        values |= {name: size, f"1/{name}": 1 / size}
    for name, size in sizes.items():
        values |= {f"sqrt {name}": size**0.5, f"1/sqrt {name}": size**-0.5}
    for (a, m), (b, n) in combinations(sizes.items(), 2):
        values |= {f"{a} {b}": m * n, f"1/({a} {b})": 1 / (m * n)}
        values |= {f"{a}/{b}": m / n, f"{b}/{a}": n / m}
    return values


def factor(exercise: Exercise, found: list[Found]):
    factors = _factors(found)
    if factors is None:
        return None
    if np.allclose(factors, factors[0], rtol=ROUNDING, atol=0):
        return f"every wrong entry is {factors[0]:.6g} times what it should be"
    sizes = [_letters(one.case.sizes) for one in found]
    for text in sizes[0]:
        for before in (1, -1, 2, 0.5):
            values = [before * values[text] for values in sizes]
            if np.allclose(factors, values, rtol=ROUNDING, atol=0):
                product = text if before == 1 else f"{before:g} {text}"
                return f"every wrong entry is {product} times what it should be"
    shown = " and ".join(f"{x:.6g}" for x in factors)
    return f"every wrong entry is a number times what it should be: {shown} in the cases"


def known_mistake(exercise: Exercise, found: list[Found]):
    for text in found[0].wrong:
        if all(text in one.wrong and close(one.got, one.wrong[text]) for one in found):
            return text
    return None


def zeros(exercise: Exercise, found: list[Found]):
    """All that is wrong is 0."""
    count = 0
    for one in found:
        entries = one.entries()
        if np.any(one.got[entries]):
            return None
        count = count or np.count_nonzero(entries)
    share = f"{count} of {found[0].got.size} entries are 0 and should not be"
    return f"{share}: never written, or multiplied by 0"


def some_signs(exercise: Exercise, found: list[Found]):
    if all(close(np.abs(one.got), np.abs(one.want)) for one in found):
        return "some entries have the wrong sign, and are right but for that"
    return None


def _same_along(values: Callable[[Found], np.ndarray], found: list[Found]) -> int | None:
    """The axis along which an array is the same number, in every case."""
    for axis in range(found[0].want.ndim):
        same = True
        for one in found:
            x = values(one)
            gap = np.ptp(x, axis=axis, keepdims=True)
            size = np.abs(x).max(axis=axis, keepdims=True)
            same = same and x.shape[axis] > 1 and bool(np.all(gap <= ROUNDING * size))
        if same:
            return axis
    return None


def factor_along(exercise: Exercise, found: list[Found]):
    """A factor of each row, or of each column."""
    if any(one.want.ndim < 2 or not one.want.all() for one in found):
        return None
    axis = _same_along(_ratio, found)
    if axis is None:
        return None
    return f"each line along axis {axis} is off by a factor of its own"


def _ratio(one: Found) -> np.ndarray:
    return one.got / one.want


def term_along(exercise: Exercise, found: list[Found]):
    axis = _same_along(_difference, found)
    if axis is None:
        return None
    return f"each line along axis {axis} is off by a number of its own, to be added to all of it"


def _difference(one: Found) -> np.ndarray:
    return one.got - one.want


def almost(exercise: Exercise, found: list[Found]):
    error = max(one.error for one in found)
    if error > ALMOST:
        return None
    reasons = "a small term such as eps, a rounded constant, or numbers in float32"
    return f"nearly right: the largest error is {error:.1g} of the largest entry: {reasons}"


HINTS: tuple[Callable, ...] = (
    not_finite,
    sign,
    known_mistake,
    transposed,
    swapped,
    only_the_shape,
    missing_sum,
    sum_too_much,
    of_other_shape,
    some_signs,
    factor,
    zeros,
    factor_along,
    term_along,
    almost,
)
