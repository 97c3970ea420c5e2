"""The gradient auditor: is a handwritten backward the derivative of its forward?

For a random cotangent dy of the output of a Case, <dy, forward(x)> is a number whose gradient
backward claims to be. The auditor compares, tensor by tensor,

  complex step   <backward(dy), d> against Im <dy, forward(x + i h d)>/h, h = 1e-30: no subtraction,
                 so the digits are all right. The directions d have no component close to zero: an
                 entry that no direction sees could be wrong unnoticed
  differences    the same against the five-point central difference of t -> <dy, forward(x + t d)>,
                 which needs no complex numbers

The relative error of a direction is |claimed - measured| / max(|claimed|, |measured|, |g| / 10): a
direction that is almost orthogonal to the gradient g is judged on the scale of g.

Then the outputs and gradients of every other way to call the two (Case.ways: gaps in memory, small
blocks, float32, adding, arrays given, in place) are held against these: one row a way, of its worst
tensor, with the largest error over the largest entry.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .case import Case, Tensors, copies

DIRECTIONS = 3
TOLERANCE = 1e-12
DIFFERENCES_TOLERANCE = 1e-7
HEADING = """\
Gradients hold to 1e-12 by complex steps (at ReLU and maximum pooling away from kinks), to 1e-7 by
differences; every way to call gives the same numbers to 1e-12, float32 to 5e-6, networks to 5e-4.
"""


@dataclass
class Row:
    """The verdict on one tensor by one method."""

    case: str
    tensor: str
    shape: tuple[int, ...]
    method: str
    norm: float
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return bool(self.error <= self.tolerance)  # nan fails


def central_difference(f: Callable, h: float = 3e-4):
    """f'(0) = (8 (f(h) - f(-h)) - (f(2h) - f(-2h))) / (12 h) + O(h^4), rounding 1e-16 / h"""
    near = f(h) - f(-h)
    far = f(2 * h) - f(-2 * h)
    return (8 * near - far) / (12 * h)


def complex_step(f: Callable, h: float = 1e-30):
    """f'(0) = Im f(i h) / h + O(h^2), for f analytic and real on real numbers"""
    return f(1j * h).imag / h


def direction(rng: np.random.Generator, shape) -> np.ndarray:
    """A unit vector with no component below a tenth of the typical size."""
    d = rng.uniform(0.3, 1.0, shape) * rng.choice([-1.0, 1.0], shape)
    return d / np.linalg.norm(d)


def along(case: Case, name: str, dy: np.ndarray, d: np.ndarray) -> Callable:
    """t -> <dy, forward(x + t d)>, x the tensor of that name; t may be complex."""

    def value(t):
        dtype = complex if isinstance(t, complex) else float
        inputs = {k: x.astype(dtype) for k, x in case.inputs.items()}
        inputs[name] += t * d
        return (dy * case.forward(inputs)).sum()

    return value


def _largest_error(case: Case, name: str, dy: np.ndarray, g: np.ndarray, floor, slope, directions):
    """max over d of |<g, d> - slope| / max(|<g, d>|, |slope|, |g| / 10, floor).

    The slope of t -> <dy, forward(x + t d)> at 0 is measured by `central_difference` or
    `complex_step`.
    """
    errors = []
    for d in directions:
        claimed = float((g * d).sum())
        measured = float(slope(along(case, name, dy, d)))
        size = max(abs(claimed), abs(measured), float(np.linalg.norm(g)) / 10, floor)
        errors.append(abs(claimed - measured) / size)
    return float(np.max(errors))  # nan if one is


def _gap(x: np.ndarray, expected: np.ndarray, dtype: str, floor: float) -> float:
    """Largest entry of the difference over the largest entry, or over the floor."""
    if x.shape != expected.shape or x.dtype != dtype:
        return np.inf
    size = max(float(np.abs(x).max()), float(np.abs(expected).max()), floor)
    return float(np.abs(x - expected).max()) / size


def _named(y: np.ndarray, gradients: Tensors) -> Tensors:
    """Copies by name: y, and the gradient of x as dx."""
    return {"y": np.array(y), **{f"d{k}": np.array(g) for k, g in gradients.items()}}


def audit(case: Case, seed: int = 0) -> list[Row]:
    """Check the gradient of every tensor of a case; Rows by tensor and method, then one a way.

    seed drives the cotangent dy and the directions. A gradient that is missing or of a wrong shape
    has an infinite error, and so have inputs and a dy that are changed.

    >>> from tinygrok.audit import audit, cases
    >>> [(row.tensor, row.method, row.passed) for row in audit(cases("softmax")[0])[:2]]
    [('x', 'complex step', True), ('x', 'differences', True)]
    """
    rows = []

    def report(tensor: str, x: np.ndarray, method: str, error: float, tolerance: float) -> None:
        norm = float(np.linalg.norm(x))
        rows.append(Row(case.name, tensor, x.shape, method, norm, error, tolerance))

    rng = np.random.default_rng(seed)
    y = np.array(case.forward(case.inputs))
    dy = rng.standard_normal(y.shape)
    before = _named(dy, case.inputs)
    expected = _named(y, case.backward(case.inputs, dy))
    for name, x in _named(dy, case.inputs).items():
        if not np.array_equal(x, before[name]):
            report(name.removeprefix("d"), x, "left alone", np.inf, 0.0)
    # A gradient may be 0 but for rounding, as that of a bias before a norm.
    floor = 1e-2 * max(float(np.abs(g).max()) for g in expected.values()) + 1e-300
    for name, x in case.inputs.items():
        g = expected.get(f"d{name}", np.array(np.nan))
        if g.shape != x.shape:
            report(name, g, "shape", np.inf, 0.0)
            return rows
        directions = [direction(rng, x.shape) for _ in range(DIRECTIONS)]
        if case.analytic:
            error = _largest_error(case, name, dy, g, floor, complex_step, directions)
            report(name, g, "complex step", error, TOLERANCE)
            directions = directions[:1]
        error = _largest_error(case, name, dy, g, floor, central_difference, directions)
        report(name, g, "differences", error, DIFFERENCES_TOLERANCE)
    tolerances = {"again": 0.0, "float32": case.float32}
    for title, way in case.ways().items():
        found = _named(*way(copies(case.inputs), dy.copy()))
        dtype = "float32" if title == "float32" else "float64"
        gaps = {k: _gap(x, expected[k], dtype, floor) for k, x in found.items()}
        worst = max(gaps, key=lambda k: np.nan_to_num(gaps[k], nan=np.inf))
        report(worst, found[worst], title, gaps[worst], tolerances.get(title, TOLERANCE))
    return rows


def table(rows: list[Row]) -> str:
    """What is checked how far, and the verdicts, one line per tensor and method."""
    title = f"{'operation':<26}{'tensor':<26}{'shape':<12}{'method':<16}"
    lines = [HEADING, f"{title}{'norm':>10}{'rel. error':>12}  verdict"]
    for r in rows:
        shape = "x".join(map(str, r.shape)) or "scalar"
        checked = f"{r.case:<26}{r.tensor:<26}{shape:<12}{r.method:<16}"
        verdict = "ok" if r.passed else "WRONG"
        lines.append(f"{checked}{r.norm:>10.3g}{r.error:>12.1e}  {verdict}")
    return "\n".join(lines)
