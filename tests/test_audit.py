"""The auditor passes every case at the stated tolerances, in every way that it may be called, and
takes a user's own pairs. What it finds stands in test_audit_mutants.py."""

import dataclasses
import importlib
import inspect
import math
import pkgutil
import subprocess
import sys
from pathlib import Path

import _reference
import numpy as np
import pytest

import tinygrok.ops as ops_package
from tinygrok.audit.case import Case, erf
from tinygrok.audit.cases import BUILDERS, CHAINS, cases
from tinygrok.audit.checker import HEADING, audit, table
from tinygrok.models.chain import RULES

EXAMPLE = Path(__file__).parent.parent / "examples" / "audit_gradients.py"


@pytest.mark.parametrize("name", BUILDERS)
def test_case_passes(name):
    rows = audit(BUILDERS[name](name))
    assert rows
    assert all(r.passed for r in rows), "\n" + table(rows)


def test_tolerances():
    """Every tensor of every case is held to 1e-12 by complex steps, and what README says of the
    others."""
    known = {"complex step": 1e-12, "differences": 1e-7, "again": 0.0}
    for name in ("linear", "activation relu", "wide gelu", "maxpool", "gpt digits", "chain vgg"):
        case = BUILDERS[name](name)
        rows = audit(case)
        assert {r.tensor for r in rows if r.method == "complex step"} == set(case.inputs)
        network = name.startswith(("gpt", "chain"))
        for row in rows:
            expected = known.get(row.method, 1e-12)
            if row.method == "float32":
                expected = 5e-4 if network else 5e-6
            assert row.tolerance == expected, row
    assert "1e-12 by complex steps" in HEADING
    assert all(case.analytic for case in cases())


def modules_of_ops():
    """The modules whose functions are audited; tests/test_reference.py holds plain versions to
    them."""
    for found in pkgutil.iter_modules(ops_package.__path__):
        yield importlib.import_module(f"tinygrok.ops.{found.name}")


def test_every_backward_is_audited():
    """A new public backward without a case fails here."""
    backwards = set()
    for module in modules_of_ops():
        for name, f in inspect.getmembers(module, inspect.isfunction):
            if name.endswith("_backward") and f.__module__ == module.__name__:
                forward = name.replace("_backward", "_forward")
                assert hasattr(module, forward), f"{name} has no forward beside it"
                backwards.add(f)
    audited = {f for case in cases() for f in case.source}
    assert backwards
    assert backwards <= audited, backwards - audited


def test_every_option_is_audited():
    """Arrays for results, results in place, adding, gradients that nobody asks for: an option of a
    signature, or a docstring that allows something, brings the way that tries it."""
    ways = {}
    for case in cases():
        ways.setdefault(case.source, set()).update(case.ways())
    audited = 0
    for module in modules_of_ops():
        for name, backward in inspect.getmembers(module, inspect.isfunction):
            if not name.endswith("_backward") or backward.__module__ != module.__name__:
                continue
            forward = getattr(module, name.replace("_backward", "_forward"))
            found = ways[forward, backward]
            takes = inspect.signature(forward).parameters
            gives = inspect.signature(backward).parameters
            text = " ".join(f"{inspect.getdoc(forward)} {inspect.getdoc(backward)}".split())
            assert ("added twice" in found) == ("accumulate" in gives), name
            given = {"out", "dx", "dlogits"} & {*takes, *gives}
            assert ("arrays given" in found) == bool(given), name
            allowed = any(f"{k} may be" in text for k in ("out", "dx", "dlogits"))
            assert not allowed or "in place" in found, name
            assert ("one by one" in found) == ("where given" in text), name
            audited += 1
    assert audited == 17


def test_the_chains_have_every_kind_of_operation():
    def kinds(ops):
        for op in ops:
            yield op.kind
            yield from kinds(op.inner + op.way)

    blocks = [block for net in CHAINS.values() for _, block in net.blocks]
    assert {kind for block in blocks for kind in kinds(block)} == {*RULES, "residual"}


def test_complex_erf():
    x = np.linspace(-7, 7, 113)
    y = erf(x + 1e-30j)
    np.testing.assert_allclose(y.real, [math.erf(number) for number in x], rtol=1e-14)
    slope = 2 / math.sqrt(math.pi) * np.exp(-x * x)
    inside = abs(x) < 6
    np.testing.assert_allclose(y.imag[inside] / 1e-30, slope[inside], rtol=1e-10, atol=1e-14)


# -- what an honest case must not do ---------------------------------------------------------------


def square(**changes) -> Case:
    """y = x^2 and what may be wrong with it."""

    def run(dev, t):
        return t["x"] ** 2, t["x"]

    def back(dev, dy, x, g):
        g["x"][...] = 2 * x * dy

    case = Case("square", {"x": np.array([0.5, -1.0, 2.0])}, run, back)
    return dataclasses.replace(case, **changes)


def failures(case: Case) -> set:
    return {row.method for row in audit(case) if not row.passed}


def test_a_case_of_ones_own():
    assert not failures(square())
    assert not failures(square(analytic=False))


def test_a_gradient_that_changes_on_repetition_is_caught():
    calls = iter(range(1000))

    def back(dev, dy, x, g):
        g["x"][...] = 2 * x * dy * (1 + next(calls) * 1e-14)

    assert "again" in failures(square(back=back))


def test_changed_arguments_are_caught():
    def forward_changes(dev, t):
        y = t["x"] ** 2
        x = t["x"].copy()
        t["x"] *= 1.5
        return y, x

    def back_changes(dev, dy, x, g):
        g["x"][...] = 2 * x * dy
        dy *= 1.5

    assert "left alone" in failures(square(run=forward_changes))
    assert "left alone" in failures(square(back=back_changes))


@pytest.mark.parametrize("gradient", [None, np.ones(2), np.ones((3, 1))])
def test_a_gradient_of_another_shape_is_caught(gradient):
    def back(dev, dy, x, g):
        if gradient is None:
            del g["x"]
        else:
            g["x"] = gradient

    assert failures(square(back=back)) == {"shape"}


def test_a_gradient_that_is_not_written_is_caught():
    assert "complex step" in failures(square(back=lambda dev, dy, x, g: None))


# -- the package, and the example ------------------------------------------------------------------


@pytest.mark.parametrize(
    "imports",
    [
        "import tinygrok.audit",
        "import tinygrok.audit.checker",
        "import tinygrok.audit.cases",
        "from tinygrok.audit.checker import audit; import tinygrok",
        "from tinygrok.audit import audit; import tinygrok, tinygrok.audit.cases",
    ],
)
def test_the_package_is_the_function_too(imports):
    """tinygrok.audit(case), and the names of the package, in every order of imports."""
    code = (
        f"{imports}\n"
        "from tinygrok.audit import Case, audit, cases, table\n"
        "case = tinygrok.audit.cases('softmax')[0]\n"
        "assert isinstance(case, Case)\n"
        "assert tinygrok.audit(case, seed=1) == audit(case, 1)\n"
        "assert tinygrok.audit.audit is tinygrok.audit.checker.audit is audit\n"
        "assert tinygrok.audit.cases is cases\n"
        "print(table(tinygrok.audit(case)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" ok\n") == 9


def example(*flags, cwd):
    command = [sys.executable, EXAMPLE, "--out", cwd / "run", *flags]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


@pytest.mark.parametrize(
    ("operation", "plain", "shown"),
    [
        ("conv stride", ["conv_forward", "conv_backward"], "dw[u,v] = sum over b, i, j"),
        ("activation erf", [], "f'' = "),
        ("second tanh", [], "f'' = -2*tanh(x)*"),
        ("softmax", [], "softmax_backward\n    dx = "),
    ],
)
def test_an_operation_is_printed_with_its_plain_version(operation, plain, shown, tmp_path):
    """Of fast operations the source of examples/_reference.py, of activations their line."""
    done = example("--op", operation, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert HEADING in done.stdout
    assert shown in done.stdout
    assert ("examples/_reference.py" in done.stdout) == bool(plain)
    for name in plain:
        assert inspect.getsource(getattr(_reference, name)).rstrip() in done.stdout


def test_every_entry_is_printed(tmp_path):
    done = example("--op", "softmax", cwd=tmp_path)
    entries = [line.split() for line in done.stdout.splitlines() if line.startswith("d y[")]
    assert len(entries) == 18  # two rows of three by three
    assert all(line[-3] == line[-2] for line in entries)


# -- a user's own pairs ----------------------------------------------------------------------------

SOFTMAX = """
import numpy as np

def softmax_forward(dev, x):
    exps = np.exp(x - x.max(axis=-1, keepdims=True))
    y = exps / exps.sum(axis=-1, keepdims=True)
    return y, (y,)

def softmax_backward(dev, dy, cache):
    (y,) = cache
    return y * (dy - (dy * y).sum(axis=-1, keepdims=True))
"""
LINEAR = """
def linear_forward(dev, x, w, b=None):
    y = x @ w
    if b is not None:
        y += b[..., None, :]
    return y, (x, w)

def linear_backward(dev, dy, cache, dw, db=None):
    x, w = cache
    dw[...] = x.swapaxes(-1, -2) @ dy
    if db is not None:
        db[...] = dy.sum(axis=-2)
    return dy @ w.swapaxes(-1, -2)
"""
GELU = """
import numpy as np
from tinygrok.engine import kernels

def gelu_forward(dev, x):
    return 0.5 * x * (1 + kernels.erf(x / 2**0.5)), x

def gelu_backward(dev, dy, x):
    density = np.exp(-x * x / 2) / (2 * np.pi) ** 0.5
    return (0.5 * (1 + kernels.erf(x / 2**0.5)) + x * density) * dy
"""
DISTANCE = """
import numpy as np

distance_inputs = {"x": (3, 4), "w": (4,), "c": ()}

def distance_forward(dev, x, w, c):
    return c * np.abs(x) @ w, (x, w, c)

def distance_backward(dev, dy, cache, dw, dc):
    x, w, c = cache
    dw[...] = c * np.abs(x).T @ dy
    dc[...] = (dy * (np.abs(x) @ w)).sum()
    return c * np.sign(x) * w * dy[:, None]
"""


@pytest.mark.parametrize(
    "text", [SOFTMAX, LINEAR, GELU, DISTANCE], ids=["softmax", "linear", "gelu", "own"]
)
def test_own_pairs_are_audited(text, tmp_path):
    """Three in the library's cases; the fourth is unknown to it and has no complex derivative."""
    (tmp_path / "mine.py").write_text(text)
    done = example("--file", "mine.py", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    methods = {" ".join(line[64:80].split()) for line in lines if line.endswith(" ok")}
    assert {"differences", "again", "gaps"} <= methods
    known = text is not DISTANCE
    assert ("the library" in methods) == ("complex step" in methods) == known


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "right", "wrong", "tensor", "method"),
    [
        (
            SOFTMAX,
            "* (dy - (dy * y).sum(axis=-1, keepdims=True))",
            "* dy * (1 - y)",
            "x",
            "complex",
        ),
        (SOFTMAX, "x - x.max(axis=-1, keepdims=True)", "2 * x", "y", "the library"),
        (SOFTMAX, "return y * (dy", "return y * (1 + 1e-9) * (dy", "x", "complex"),
        (LINEAR, "dw[...] = ", "dw[...] = 2 * ", "w", "complex"),
        (LINEAR, "dw[...] = ", "dw = ", "w", "complex"),
        (LINEAR, "db[...] = dy.sum(axis=-2)", "db[...] = dy.mean(axis=-2)", "b", "complex"),
        (GELU, "x * density", "0.999 * x * density", "x", "complex"),
        (DISTANCE, "np.sign(x)", "1", "x", "differences"),
        (DISTANCE, "(x, w, c)\n", "(x * 1, w, c + 1e-3)\n", "x", "differences"),
    ],
)
def test_a_wrong_pair_is_found(text, right, wrong, tensor, method, tmp_path):
    """Exit code 1 and a verdict on the tensor that is wrong."""
    assert text.count(right) == 1 or right.endswith("\n")
    (tmp_path / "mine.py").write_text(text.replace(right, wrong, 1))
    done = example("--file", "mine.py", cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    failed = [line for line in done.stdout.splitlines() if line.endswith("WRONG")]
    assert any(f" {tensor} " in line and method in line for line in failed), done.stdout


BAD = {
    "there is no such file": (None, "No such file"),
    "syntax error": ("def softmax_forward(dev, x:\n", "line 1: "),
    "error at import": ("import numpy\nnumpy.zzz\n", "line 2: AttributeError: "),
    "leaves": ("import sys\nsys.exit(3)\n", "line 2: SystemExit: 3"),
    "not text": (b"\xff\xfe\x00", "mine.py: "),
    "nothing in it": ("x = 1\n", "there is no pair NAME_forward, NAME_backward"),
    "no backward": ("def cube_forward(dev, x): return x, ()", "cube has no cube_backward"),
    "no forward": ("def cube_backward(dev, dy, cache): return dy", "cube has no cube_forward"),
    "no inputs": (DISTANCE.replace("distance_inputs", "inputs"), "state distance_inputs = {"),
    "bad inputs": (DISTANCE.replace("(4,)", "'4'"), "'4' is no shape"),
    "error in forward": (SOFTMAX.replace("np.exp", "np.expp"), "line 5: AttributeError: "),
    "error in backward": (SOFTMAX.replace("(y,) = cache", "y, z = cache"), "line 10: ValueError: "),
    "no cache": (SOFTMAX.replace("return y, (y,)", "return y"), "must return (y, cache)"),
    "no dx": (SOFTMAX.replace("return y * (dy", "y * (dy"), "must return the array dx"),
    "no floats": (SOFTMAX.replace("return y,", "return 'y',"), "y must be an array of floats"),
    "wrong shape of dx": (
        SOFTMAX.replace("y * (dy - (dy * y).sum(axis=-1, keepdims=True))", "(dy * y).sum(axis=-1)"),
        "the gradient of x has shape (2,), not (2, 3)",
    ),
    "wrong shape of dw": (
        LINEAR.replace("x.swapaxes(-1, -2) @ dy", "(x.swapaxes(-1, -2) @ dy).swapaxes(-1, -2)"),
        "ValueError: could not broadcast",
    ),
    "other arguments": (LINEAR.replace("dev, x, w, b=None", "x, w"), "TypeError: "),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_in_one_line(name, tmp_path):
    text, expected = BAD[name]
    if isinstance(text, bytes):
        (tmp_path / "mine.py").write_bytes(text)
    elif text is not None:
        (tmp_path / "mine.py").write_text(text)
    done = example("--file", "mine.py", cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert "mine.py" in done.stderr
    assert expected in done.stderr, done.stderr
