"""The gradient auditor: is a handwritten backward the derivative of its forward?

A Case holds a forward and a backward as pure functions of named float64 tensors. For a random
cotangent v of the outputs, <v, forward(x)> is a number whose gradient backward claims to be. The
auditor compares, tensor by tensor,

  direction   <backward(v), d> against the five-point central difference of t -> <v, forward(x + t d)>, for directions d
              none of whose components is close to zero (an entry that no direction sees could be
              wrong unnoticed)
  complex     the same against Im <v, forward(x + i h d)>/h, h = 1e-30: no subtraction, so the digits are all right;
              for forwards that are analytic in the complex plane
  jacobian    every entry of the Jacobian by central differences, when tensors and outputs are small

The relative error of a direction is |claimed - measured| / max(|claimed|, |measured|, |g| / 10): a
direction that is almost orthogonal to the gradient g is judged on the scale of g.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ..engine.device import Device

STEP = (
    1e-3  # five-point formula: error of order STEP^4 in the fifth derivative, rounding 1e-16 / STEP
)
TINY = 1e-30  # complex step
DIRECTIONS = 3
JACOBIAN_SIZE = 64  # inputs times outputs up to which every entry is checked
TOLERANCE, COMPLEX_TOLERANCE = 1e-7, 1e-12

Tensors = dict[str, np.ndarray]


@dataclass
class Case:
    """One operation or model to audit.

    forward    {name: tensor} -> {name: output}; must not change its inputs
    backward   ({name: tensor}, {output: cotangent}) -> {name: gradient} for the tensors it differentiates
    source     the functions whose docstrings state the formulas
    analytic   forward also runs on complex128 tensors
    """

    name: str
    inputs: Tensors
    forward: Callable[[Tensors], Tensors]
    backward: Callable[[Tensors, Tensors], Tensors]
    source: tuple[Callable, ...] = ()
    analytic: bool = False
    frozen: tuple[str, ...] = field(default=())  # inputs that backward does not differentiate

    def formulas(self) -> str:
        return "\n\n".join(
            f"{f.__name__}\n    {inspect.getdoc(f)}".replace("\n", "\n    ").rstrip()
            for f in self.source
        )


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


def direction(rng: np.random.Generator, shape) -> np.ndarray:
    """A unit vector with no component below a tenth of the typical size."""
    d = rng.uniform(0.3, 1.0, shape) * rng.choice([-1.0, 1.0], shape)
    return d / np.linalg.norm(d)


def _dot(a: Tensors, b: Tensors):
    return sum((a[k] * b[k]).sum() for k in a)


def _central(f: Callable[[float], np.ndarray], h: float = STEP):
    """f'(0) = (8 (f(h) - f(-h)) - (f(2h) - f(-2h))) / (12 h)"""
    return (8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h)


def _error(claimed: float, measured: float, scale: float) -> float:
    return abs(claimed - measured) / max(abs(claimed), abs(measured), scale, 1e-300)


def audit(case: Case, seed: int = 0) -> list[Row]:
    """Check every differentiated tensor of a case; one Row per tensor and method. Wrong shapes and
    gradients that change on repetition are errors of infinite size."""
    rng = np.random.default_rng(seed)
    outputs = case.forward(case.inputs)
    v = {k: rng.standard_normal(np.shape(y)) for k, y in outputs.items()}
    claimed = {
        k: np.array(g)
        for k, g in case.backward(case.inputs, {k: x.copy() for k, x in v.items()}).items()
    }
    again = case.backward(case.inputs, {k: x.copy() for k, x in v.items()})
    rows = []
    for name, x in case.inputs.items():
        if name in case.frozen:
            continue
        g = claimed.get(name)
        row = lambda method, error, tol=TOLERANCE, name=name, x=x, g=g: Row(  # noqa: E731
            case.name,
            name,
            x.shape,
            method,
            float("nan") if g is None else float(np.linalg.norm(g)),
            float(error),
            tol,
        )
        if g is None or g.shape != x.shape or not np.array_equal(g, again[name]):
            rows.append(row("shape, repeatability", np.inf))
            continue

        def moved(d, t, dtype=float, name=name):
            inputs = {k: a.astype(dtype) for k, a in case.inputs.items()}
            return _dot(v, case.forward({**inputs, name: inputs[name] + t * d}))

        errors, complex_errors = [], []
        for _ in range(DIRECTIONS):
            d = direction(rng, x.shape)
            along, scale = float((g * d).sum()), float(np.linalg.norm(g)) / 10
            errors.append(_error(along, float(_central(lambda t, d=d: moved(d, t))), scale))
            if case.analytic:
                complex_errors.append(
                    _error(along, float(moved(d, 1j * TINY, complex).imag) / TINY, scale)
                )
        rows.append(row("direction", max(errors)))
        if case.analytic:
            rows.append(row("complex step", max(complex_errors), COMPLEX_TOLERANCE))
        if x.size * sum(np.size(y) for y in outputs.values()) <= JACOBIAN_SIZE:
            rows.append(row("jacobian", jacobian_error(case, name)))
    return rows


def jacobian(case: Case, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(by backward, by central differences) of all outputs with respect to one tensor, each
    (outputs, entries)."""
    x = case.inputs[name]
    shapes = {k: np.shape(y) for k, y in case.forward(case.inputs).items()}
    by_backward = []
    for key, shape in shapes.items():
        for i in np.ndindex(shape):
            v = {k: np.zeros(s) for k, s in shapes.items()}
            v[key][i] = 1.0
            by_backward.append(np.array(case.backward(case.inputs, v)[name]).reshape(-1))

    def outputs_at(i, t):
        moved = x.copy()
        moved[i] += t
        return np.concatenate(
            [np.reshape(y, -1) for y in case.forward({**case.inputs, name: moved}).values()]
        )

    columns = [_central(lambda t, i=i: outputs_at(i, t)) for i in np.ndindex(x.shape)]
    return np.stack(by_backward), np.stack(columns, axis=1)


def jacobian_error(case: Case, name: str) -> float:
    """Largest entry of the difference over the largest entry of the Jacobian."""
    claimed, measured = jacobian(case, name)
    return float(
        np.abs(claimed - measured).max()
        / max(np.abs(measured).max(), np.abs(claimed).max(), 1e-300)
    )


def table(rows: list[Row]) -> str:
    """The verdicts as text, one line per tensor and method."""
    lines = [
        f"{'operation':<24}{'tensor':<10}{'shape':<14}{'method':<22}{'|gradient|':>11}{'rel. error':>12}  verdict"
    ]
    for r in rows:
        shape = "x".join(map(str, r.shape)) or "scalar"
        verdict = "ok" if r.passed else "WRONG"
        lines.append(
            f"{r.case:<24}{r.tensor:<10}{shape:<14}{r.method:<22}{r.norm:>11.3g}{r.error:>12.1e}  {verdict}"
        )
    return "\n".join(lines)
