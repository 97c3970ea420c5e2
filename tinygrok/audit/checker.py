"""The gradient auditor: is a handwritten backward the derivative of its forward?

A Case holds a forward and a backward as pure functions of named float64 tensors. For a random
cotangent v of the outputs, <v, forward(x)> is a number whose gradient backward claims to be. The
auditor compares, tensor by tensor,

  direction   <backward(v), d> against the five-point central difference of
              t -> <v, forward(x + t d)>, for directions d none of whose components is close to zero
              (an entry that no direction sees could be wrong unnoticed)
  complex     the same against Im <v, forward(x + i h d)>/h, h = 1e-30: no subtraction, so the
              digits are all right; for forwards that are analytic in the complex plane
  jacobian    every entry of the Jacobian by central differences, when tensors and outputs are small

The relative error of a direction is |claimed - measured| / max(|claimed|, |measured|, |g| / 10): a
direction that is almost orthogonal to the gradient g is judged on the scale of g.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from textwrap import indent

import numpy as np

from ..engine.device import Device

# five-point formula: error of order STEP^4 in the fifth derivative, rounding 1e-16 / STEP
STEP = 1e-3
TINY = 1e-30  # complex step
DIRECTIONS = 3
JACOBIAN_SIZE = 64  # inputs times outputs up to which every entry is checked
TOLERANCE = 1e-7
COMPLEX_TOLERANCE = 1e-12

Tensors = dict[str, np.ndarray]


@dataclass
class Case:
    """One operation or model to audit.

    forward    {name: tensor} -> {name: output}; must not change its inputs
    backward   ({name: tensor}, {output: cotangent}) -> {name: gradient} of every tensor
    source     the functions whose docstrings state the formulas
    analytic   forward also runs on complex128 tensors
    notes      formulas that stand elsewhere, as text
    """

    name: str
    inputs: Tensors
    forward: Callable[[Tensors], Tensors]
    backward: Callable[[Tensors, Tensors], Tensors]
    source: tuple[Callable, ...] = ()
    analytic: bool = False
    notes: str = ""

    def formulas(self) -> str:
        """Names and docstrings of the functions under audit, and the notes, as text."""
        texts = []
        for function in self.source:
            text = inspect.getdoc(function) or ""
            texts.append(f"{function.__name__}\n{indent(text, '    ')}")
        if self.notes:
            texts.append(self.notes)
        return "\n\n".join(texts)


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


def cpu_device(dtype: str = "float64") -> Device:
    return Device("cpu", np, dtype)


# -- derivatives without backward ------------------------------------------------------------------


def central_difference(f: Callable, h: float = STEP):
    """f'(0) = (8 (f(h) - f(-h)) - (f(2h) - f(-2h))) / (12 h) + O(h^4)"""
    near = f(h) - f(-h)
    far = f(2 * h) - f(-2 * h)
    return (8 * near - far) / (12 * h)


def complex_step(f: Callable, h: float = TINY) -> float:
    """f'(0) = Im f(i h) / h + O(h^2), for f analytic and real on real numbers"""
    return float(f(1j * h).imag) / h


def direction(rng: np.random.Generator, shape) -> np.ndarray:
    """A unit vector with no component below a tenth of the typical size."""
    d = rng.uniform(0.3, 1.0, shape) * rng.choice([-1.0, 1.0], shape)
    return d / np.linalg.norm(d)


def _along(case: Case, name: str, v: Tensors, d: np.ndarray) -> Callable:
    """t -> <v, forward(x + t d)>, x the tensor of that name; t may be complex."""

    def value(t):
        dtype = complex if isinstance(t, complex) else float
        inputs = {k: x.astype(dtype) for k, x in case.inputs.items()}
        inputs[name] = inputs[name] + t * d
        outputs = case.forward(inputs)
        return sum((v[k] * outputs[k]).sum() for k in v)

    return value


# -- the methods -----------------------------------------------------------------------------------


def _largest_error(
    case: Case, name: str, v: Tensors, g: np.ndarray, directions: list[np.ndarray], slope: Callable
) -> float:
    """max over d of |<g, d> - slope| / max(|<g, d>|, |slope|, |g| / 10).

    The slope of t -> <v, forward(x + t d)> at 0 is measured by `central_difference` or
    `complex_step`.
    """
    scale = float(np.linalg.norm(g)) / 10
    errors = []
    for d in directions:
        claimed = float((g * d).sum())
        measured = float(slope(_along(case, name, v, d)))
        size = max(abs(claimed), abs(measured), scale, 1e-300)
        errors.append(abs(claimed - measured) / size)
    return max(errors)


def jacobian(case: Case, name: str) -> tuple[np.ndarray, np.ndarray]:
    """d outputs / d one tensor, (by backward, by central differences), each (outputs, entries).

    A row by backward is its gradient for a cotangent of one 1 among zeros; a column by differences
    is the change of all outputs with one entry.
    """
    x = case.inputs[name]
    outputs = case.forward(case.inputs)
    shapes = {k: np.shape(y) for k, y in outputs.items()}
    rows = []
    for key, shape in shapes.items():
        for i in np.ndindex(shape):
            v = {k: np.zeros(s) for k, s in shapes.items()}
            v[key][i] = 1.0
            g = case.backward(case.inputs, v)
            rows.append(np.array(g[name]).reshape(-1))

    def outputs_at(i, t):
        moved = x.copy()
        moved[i] += t
        outputs = case.forward({**case.inputs, name: moved})
        return np.concatenate([np.reshape(y, -1) for y in outputs.values()])

    columns = [central_difference(partial(outputs_at, i)) for i in np.ndindex(x.shape)]
    return np.stack(rows), np.stack(columns, axis=1)


def jacobian_error(case: Case, name: str) -> float:
    """Largest entry of the difference over the largest entry of the Jacobian."""
    claimed, measured = jacobian(case, name)
    gap = np.abs(claimed - measured).max()
    size = max(np.abs(measured).max(), np.abs(claimed).max(), 1e-300)
    return float(gap / size)


def _errors(
    case: Case, name: str, v: Tensors, g: np.ndarray, directions: list[np.ndarray]
) -> dict[str, float]:
    """{method: relative error of the gradient g of one tensor}"""
    check = partial(_largest_error, case, name, v, g, directions)
    errors = {"direction": check(central_difference)}
    if case.analytic:
        errors["complex step"] = check(complex_step)
    if g.size * sum(y.size for y in v.values()) <= JACOBIAN_SIZE:
        errors["jacobian"] = jacobian_error(case, name)
    return errors


def audit(case: Case, seed: int = 0) -> list[Row]:
    """Check the gradient of every tensor of a case; one Row per tensor and method.

    seed drives the cotangent v and the directions. A gradient that is missing, of a wrong shape, or
    another when backward runs again has an infinite error.

    >>> from tinygrok.audit import audit, cases
    >>> [(r.tensor, r.method, r.passed) for r in audit(cases("softmax")[0])]
    [('x', 'direction', True), ('x', 'complex step', True), ('x', 'jacobian', True)]
    """
    rng = np.random.default_rng(seed)
    outputs = case.forward(case.inputs)
    v = {k: rng.standard_normal(np.shape(y)) for k, y in outputs.items()}

    def gradients():
        cotangents = {k: x.copy() for k, x in v.items()}
        found = case.backward(case.inputs, cotangents)
        return {k: np.array(g) for k, g in found.items()}

    claimed = gradients()
    again = gradients()
    rows = []
    for name, x in case.inputs.items():
        g = claimed.get(name)
        if g is None or g.shape != x.shape or not np.array_equal(g, again[name]):
            errors = {"shape, repeatability": np.inf}
        else:
            directions = [direction(rng, x.shape) for _ in range(DIRECTIONS)]
            errors = _errors(case, name, v, g, directions)
        norm = np.nan if g is None else float(np.linalg.norm(g))
        for method, error in errors.items():
            tolerance = COMPLEX_TOLERANCE if method == "complex step" else TOLERANCE
            rows.append(Row(case.name, name, x.shape, method, norm, error, tolerance))
    return rows


def table(rows: list[Row]) -> str:
    """The verdicts as text, one line per tensor and method."""
    title = f"{'operation':<24}{'tensor':<10}{'shape':<14}{'method':<22}"
    lines = [f"{title}{'|gradient|':>11}{'rel. error':>12}  verdict"]
    for r in rows:
        shape = "x".join(map(str, r.shape)) or "scalar"
        checked = f"{r.case:<24}{r.tensor:<10}{shape:<14}{r.method:<22}"
        verdict = "ok" if r.passed else "WRONG"
        lines.append(f"{checked}{r.norm:>11.3g}{r.error:>12.1e}  {verdict}")
    return "\n".join(lines)
