"""The text of every activation, evaluated, is what its kernels compute, and is consistent."""

import math

import numpy as np
import pytest

from tinygrok.audit.case import cpu_device
from tinygrok.engine.kernels import ACTIVATIONS
from tinygrok.ops import activation

NAMES = {
    "erf": math.erf,
    "exp": math.exp,
    "log": math.log,
    "tanh": math.tanh,
    "sqrt": math.sqrt,
    "pi": math.pi,
    "max": max,
    "where": lambda condition, then, otherwise: then if condition else otherwise,
}
KINDS = [*(k for k in ACTIVATIONS if k != "power"), "power1", "power2", "power3", "power7"]


def evaluate(kind, field, x):
    """The text of one field at the numbers x."""
    entry, args = activation.resolve(kind)
    results = []
    for number in x:
        names = {"x": float(number), "k": args[0] if args else None}
        exec(entry.given, {**NAMES, "__builtins__": {}, **names}, names)
        results.append(eval(getattr(entry, field), {**NAMES, "__builtins__": {}}, names))
    return np.array(results, dtype=float)


@pytest.mark.parametrize("kind", KINDS)
def test_text_is_what_the_kernels_compute(dev, kind):
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(0, 2, 40), [-5.0, 5.0, 1e-3, -1e-3]])
    dy = rng.standard_normal(len(x))
    on_device = dev.to_device(x)
    x = dev.to_host(on_device).astype(float)  # rounded to the dtype, as the kernels see it
    y, cache = activation.activation_forward(dev, on_device, kind)
    got = {
        "formula": y,
        "slope": activation.activation_backward(dev, dev.to_device(dy), cache),
        "curvature": activation.activation_second(dev, on_device, kind),
    }
    tolerance = 1e-12 if dev.dtype == np.float64 else 2e-5
    for field, values in got.items():
        expected = evaluate(kind, field, x) * (dy if field == "slope" else 1)
        atol = tolerance * max(1, np.abs(expected).max())
        np.testing.assert_allclose(dev.to_host(values), expected, tolerance, atol, err_msg=field)


@pytest.mark.parametrize("kind", KINDS)
def test_text_is_consistent(kind):
    """slope and curvature by differences of the formula, away from the corner at 0."""
    x = np.array([-2.1, -1.3, -0.4, 0.3, 0.9, 1.7])
    h = 1e-5
    for field, derivative in (("formula", "slope"), ("slope", "curvature")):
        measured = (evaluate(kind, field, x + h) - evaluate(kind, field, x - h)) / (2 * h)
        np.testing.assert_allclose(measured, evaluate(kind, derivative, x), rtol=1e-6, atol=1e-8)


def test_table_and_help_name_every_activation():
    table, line = activation.activation_table(), activation.activation_help()
    for name, entry in ACTIVATIONS.items():
        assert name in line
        assert entry.formula in line
        assert all(text in table for text in (entry.formula, entry.slope, entry.curvature))
    assert "x**2" not in activation.activation_table("tanh")
    assert activation.activation_table("tanh", "power3").count("f'' =") == 2


def test_a_new_activation_is_one_entry(monkeypatch):
    """What the library knows of an activation comes from its entry in the table."""
    monkeypatch.setitem(ACTIVATIONS, "mine", ACTIVATIONS["tanh"])
    dev = cpu_device()
    y, _ = activation.activation_forward(dev, np.array([0.5]), "mine")
    assert y == np.tanh(0.5)
    assert "mine: tanh(x)" in activation.activation_help()
    assert activation.activation_table("mine").startswith("mine\n    f   = tanh(x)")
