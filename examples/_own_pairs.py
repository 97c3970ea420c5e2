"""Pairs NAME_forward, NAME_backward of a user's own file as cases of the audit."""

import functools
import types
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from _own_file import refusing

from tinygrok.audit.case import Case, Pair, replaced
from tinygrok.audit.checker import Row, along, audit, central_difference, complex_step
from tinygrok.audit.operations import MODULES, OPERATIONS, seeded
from tinygrok.engine.errors import InputError

WITHOUT_DX = ("embedding", "attention")  # they write all gradients into arrays


def cases(path: Path, names: dict) -> list[Case]:
    """The cases of all pairs in a file that defines these names.

    Where the library has an operation or an activation NAME, its own cases are run with the user's
    pair, whose results must also be those of the library. Another NAME needs NAME_inputs =
    {"x": (3, 4), ...}, the shapes of what forward takes after dev; backward returns the gradient of
    the first and writes those of the others into arrays.
    """
    own = {k: f for k, f in names.items() if callable(f) and not _of_library(f)}
    pairs = {k.rsplit("_", 1)[0] for k in own if k.endswith(("_forward", "_backward"))}
    if not pairs:
        raise InputError(f"{path}: there is no pair NAME_forward, NAME_backward")
    found = []
    for name in sorted(pairs):
        for function in (f"{name}_forward", f"{name}_backward"):
            if function not in own:
                raise InputError(f"{path}: {name} has no {function}")
        forward = _checked_forward(own[f"{name}_forward"])
        backward = _checked_backward(own[f"{name}_backward"], name)
        known = [module for module in MODULES if hasattr(module, f"{name}_backward")]
        if known:
            found += _cases_of_library(path, name, known[0], (forward, backward))
        elif f"activation {name}" in OPERATIONS:
            found += _cases_of_activation(name, (forward, backward))
        else:
            inputs = _inputs(path, name, names.get(f"{name}_inputs"))
            found.append(Pair(name, inputs, (forward, backward), dx=next(iter(inputs))))
    for case in found:
        with refusing(path, case.name):
            case.analytic = _is_analytic(case)
    return found


def audited(path: Path, case: Case, seed: int) -> list[Row]:
    """Rows of a user's case, in float64; InputError where it raises, or gives wrong shapes."""
    with refusing(path, case.name):
        rows = audit(case, seed)
    for row in rows:
        if row.method == "shape":
            shapes = f"has shape {row.shape}, not {case.inputs[row.tensor].shape}"
            raise InputError(f"{path}: {case.name}: the gradient of {row.tensor} {shapes}")
    return [row for row in rows if row.method != "float32"]


def _of_library(function: Callable) -> bool:
    """Imported from tinygrok, and not the user's own."""
    return (getattr(function, "__module__", None) or "").startswith("tinygrok")


def _checked_forward(forward: Callable) -> Callable:
    @functools.wraps(forward)
    def checked(*args, **options):
        result = forward(*args, **options)
        if not isinstance(result, tuple) or len(result) != 2:
            raise InputError(f"{forward.__name__} must return (y, cache)")
        y, cache = result
        if not isinstance(y, np.ndarray | np.floating) or y.dtype.kind not in "fc":
            raise InputError(f"{forward.__name__}: y must be an array of floats, not {type(y)}")
        return y, cache

    return checked


def _checked_backward(backward: Callable, name: str) -> Callable:
    @functools.wraps(backward)
    def checked(*args, **options):
        dx = backward(*args, **options)
        if name not in WITHOUT_DX and not isinstance(dx, np.ndarray | np.floating):
            raise InputError(f"{backward.__name__} must return the array dx, not {type(dx)}")
        return dx

    return checked


def _cases_of_library(path: Path, name: str, module: types.ModuleType, pair: tuple) -> list[Case]:
    """The library's cases of its operation NAME with the user's pair in its place."""
    forward, backward = pair
    own = {(module, f"{name}_forward"): forward, (module, f"{name}_backward"): backward}
    library = getattr(module, f"{name}_forward")
    found = []
    for title, build in OPERATIONS.items():
        right = build(title)
        if right.source[0] is library:
            with refusing(path, title), replaced(own):
                case = build(title)
            case.more["the library"] = functools.partial(_results, right)
            found.append(case)
    return found


def _cases_of_activation(name: str, pair: tuple) -> list[Case]:
    """The library's cases of its activation NAME, for a pair of its own."""
    found = []
    for title in (f"activation {name}", f"wide {name}"):
        right = OPERATIONS[title](title)
        case = Pair(title, right.inputs, pair)
        case.more["the library"] = functools.partial(_results, right)
        found.append(case)
    return found


def _results(case: Case, t: dict, dy: np.ndarray) -> tuple:
    return case.forward(t), case.backward(t, dy)


def _inputs(path: Path, name: str, shapes) -> dict[str, np.ndarray]:
    """Tensors away from 0, where functions such as ReLU have their kinks."""
    if not isinstance(shapes, dict) or not shapes:
        need = f'{name}_inputs = {{"x": (3, 4), ...}}, the shapes of what {name}_forward takes'
        raise InputError(f"{path}: the library has no operation {name}: state {need}")
    inputs = {}
    for tensor, shape in shapes.items():
        rng = seeded(f"{name} {tensor}")
        try:
            size = rng.uniform(0.1, 2.0, shape).round(1)
        except (TypeError, ValueError) as error:
            raise InputError(f"{path}: {name}_inputs: {shape!r} is no shape") from error
        inputs[tensor] = np.asarray(size * rng.choice([-1, 1], np.shape(size)))
    return inputs


def _is_analytic(case: Case) -> bool:
    """Whether forward runs on complex numbers, with the slopes that differences find."""
    y = np.asarray(case.forward(case.inputs))
    dy = seeded(case.name).standard_normal(y.shape)
    for name, x in case.inputs.items():
        value = along(case, name, dy, np.ones(x.shape))
        measured = float(central_difference(value))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # complex numbers cast to real ones
                found = float(complex_step(value))
        except Exception:
            return False
        if not abs(found - measured) <= 1e-5 * max(abs(measured), 1e-5):
            return False
    return True
