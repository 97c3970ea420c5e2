"""Exercises as a student meets them: the list, the files, solutions, planted errors, bad files."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
ROOT = EXAMPLES.parent
sys.path.insert(0, str(EXAMPLES))

import _exercises as exercises  # noqa: E402
import _exercises_given as given  # noqa: E402
import _exercises_marking as marking  # noqa: E402
import _own_file as own_file  # noqa: E402
import audit_gradients  # noqa: E402
import exercise as example  # noqa: E402

from tinygrok.engine.device import get_device  # noqa: E402
from tinygrok.engine.errors import InputError  # noqa: E402
from tinygrok.ops import activation, attention, conv, embedding, linear, loss, norm  # noqa: E402

DEV = get_device("cpu", "float64", threads=1)
EMPTY = "    raise NotImplementedError\n"
NAMES = list(exercises.EXERCISES)


def run(script, *flags, cwd, **options):
    command = [sys.executable, str(EXAMPLES / f"{script}.py"), *map(str, flags)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, **options)


def written(name, body, more=""):
    """The file of an exercise with a body in the place of the empty one."""
    text = example.text(exercises.find(name), Path(f"{name}.py"))
    assert text.count(EMPTY) == 1
    lines = "".join(f"    {line}\n" for line in body.strip("\n").splitlines())
    return text.replace(EMPTY, lines).replace("import numpy as np\n", "import numpy as np\n" + more)


def marked(name, text, folder, capsys):
    """(exit code, what is printed), in this process."""
    path = folder / f"{name}.py"
    path.write_text(text)
    code = marking.mark(path, own_file.load(path))
    return code, capsys.readouterr().out


LIBRARY = """
from tinygrok.criticality.jacobian import Propagation
from tinygrok.engine.device import get_device
from tinygrok.engine.optim import AdamW
from tinygrok.engine.params import Arena
from tinygrok.models import chain
from tinygrok.models.protocol import Stage
import _reference as reference
from tinygrok.ops import activation, attention, conv, embedding, linear, loss, norm
dev = get_device("cpu", "float64", threads=1)
"""
# The library's own functions, called from the file.
SOLUTIONS = {
    "linear": """
dw, db = np.empty_like(w), np.empty(w.shape[-1])
dx = linear.linear_backward(dev, dy, cache, dw, db)
return dx, dw, db""",
    "gelu_tanh": "return activation.activation_backward(dev, dy, (x, 'gelu_tanh'))",
    "embedding": """
du = np.empty(shape)
rows = embedding.RowIndex(dev, index, shape[1])
embedding.embedding_backward(dev, dh, (rows,), du)
return du""",
    "adamw": """
params, grads = (Arena(dev, {"w": w.shape}) for _ in range(2))
optimiser = AdamW(dev, params, grads, lr, betas, eps, weight_decay=weight_decay)
params.load({"w": w})
grads.load({"w": g})
for name, x in (("m", m), ("v", v)):
    optimiser.state[name].load({"w": x})
optimiser.step(t)
return tuple(x["w"].copy() for x in (params, optimiser.state["m"], optimiser.state["v"]))""",
    "softmax": "return loss.softmax_backward(dev, dy, cache)",
    "cross_entropy": """
_, cache = loss.cross_entropy_forward(dev, logits, target)
return loss.cross_entropy_backward(dev, float(dloss), cache)""",
    "layernorm": """
dgain, dshift = np.empty((2, len(gain)))
return norm.layernorm_backward(dev, dy, cache, dgain, dshift), dgain, dshift""",
    "batchnorm": """
dgain, dshift = np.empty((2, len(gain)))
cache = xhat, rstd, gain, 1 / len(xhat)
return norm.batchnorm_backward(dev, dy, cache, dgain, dshift), dgain, dshift""",
    "attention": """
mask = attention.causal_mask_host(dev, range(q.shape[1]), q.shape[1])
_, cache = attention.attention_forward(dev, q.copy(), k, v, 1, mask)
dq, dk, dv = np.empty((3, *q.shape))
attention.attention_backward(dev, dy, cache, dq, dk, dv)
return dq, dk, dv""",
    "conv": """
dw, db = np.empty(w.shape), np.empty(w.shape[-1])
_, its_cache = conv.conv_forward(dev, x, w, None, stride, pad)
return conv.conv_backward(dev, dy, its_cache, dw, db), dw, db""",
    "apjn": """
class Fixed:
    def standard_normal(self, shape):
        return v
def stage(w):
    def forward(h):
        y, slope = activation.activation_forward(dev, h, "tanh")
        y, product = linear.linear_forward(dev, y, w)
        return y, (slope, product)
    def backward(dy, cache):
        slope, product = cache
        return activation.activation_backward(
            dev, linear.linear_backward(dev, dy, product), slope)
    return Stage("stage", forward, backward)
h, _ = layers[0]
return Propagation(dev, [stage(w) for _, w in layers], h).apjn(Fixed())[0]""",
    "tangent_pair": """
(_, ops), = chain.Chain([("layer", (("linear", "layer", *w.shape), ("act", "tanh")))]).blocks
weights = {"layer.weight": w, "layer.bias": b}
g = {"layer.weight": np.zeros_like(w), "layer.bias": np.zeros_like(b)}
p = chain.Pass(dev, weights, g, accumulate=True)
_, caches = chain.forward(p, ops, x)
_, dots = chain.tangent(p, ops, xdot, caches)
dx, dxdot = chain.pair(p, ops, dy, dydot, caches, dots)
return dx, dxdot, g["layer.weight"], g["layer.bias"]""",
}


def solution(name):
    text = written(name, SOLUTIONS[name], LIBRARY)
    # More in the cache is allowed.
    return text.replace("(x, xdot, w, y, ydot)", "(x, xdot, w, y, ydot, b)").replace(
        "x, xdot, w, y, ydot = cache", "x, xdot, w, y, ydot, b = cache"
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_library_is_the_solution(name, tmp_path, capsys):
    code, printed = marked(name, solution(name), tmp_path, capsys)
    assert code == 0, printed
    assert "All right. The library has it as " in printed
    assert "WRONG" not in printed


# -- what is given ---------------------------------------------------------------------------------


def library_forward(name, case):
    """The library's forward on the tensors of a case; None for what only the marking checks."""
    x = list(case.tensors.values())
    settings = case.settings
    if name == "linear":
        return linear.linear_forward(DEV, *x)[0]
    if name == "gelu_tanh":
        return activation.activation_forward(DEV, *x, "gelu_tanh")[0]
    if name == "embedding":
        rows = embedding.RowIndex(DEV, *settings, x[0].shape[1])
        return embedding.embedding_forward(DEV, *x, rows)[0]
    if name == "softmax":
        return loss.softmax_forward(DEV, *x)[0]
    if name == "cross_entropy":
        return loss.cross_entropy_forward(DEV, *x, *settings)[0]
    if name == "layernorm":
        return norm.layernorm_forward(DEV, *x)[0]
    if name == "batchnorm":
        running = np.zeros((2, x[0].shape[1]))
        return norm.batchnorm_forward(DEV, *x, *running)[0]
    if name == "attention":
        T = x[0].shape[1]
        return attention.attention_forward(
            DEV, x[0].copy(), *x[1:], 1, attention.causal_mask_host(DEV, range(T), T)
        )[0]
    if name == "conv":
        return conv.conv_forward(DEV, *x, *settings)[0]
    if name == "apjn":
        h = x[0]
        for w in settings[0]:
            h, _ = activation.activation_forward(DEV, h, "tanh")
            h, _ = linear.linear_forward(DEV, h, w)
        return h
    assert name == "tangent_pair"
    x, xdot, w, b = x
    z, _ = linear.linear_forward(DEV, x, w, b)
    y, cache = activation.activation_forward(DEV, z, "tanh")
    ydot, _ = activation.activation_tangent(DEV, xdot @ w, cache)
    return y, ydot


@pytest.mark.parametrize("name", [name for name in NAMES if name != "adamw"])
def test_forwards_are_those_of_the_library(name):
    exercise = exercises.find(name)
    for number in range(len(exercise.sizes)):
        case = exercise.case(number)
        y, _ = exercise.forward(*case.tensors.values(), *case.settings)
        np.testing.assert_allclose(y, library_forward(name, case), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_plain_numpy_and_not_written_yet(name, tmp_path, capsys, monkeypatch):
    """It imports NumPy alone, and runs; the marking says that there is nothing to mark."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["examples/exercise.py"])
    assert example.main([name]) == 0
    text = (tmp_path / f"{name}.py").read_text()
    assert re.findall("^ *(?:import|from) .*", text, re.MULTILINE) == ["import numpy as np"]
    assert "own code, and marking it runs it" in text
    assert max(map(len, text.splitlines())) <= 100
    capsys.readouterr()
    code, printed = marked(name, text, tmp_path, capsys)
    assert code == 1
    asked = exercises.find(name).asked.__name__
    assert printed.endswith(f"{asked} is not written yet: it raises NotImplementedError\n")


def test_every_solution_stands_where_the_end_says():
    for exercise in exercises.ORDERED:
        name, _, place = exercise.solution.partition(" in ")
        source = (ROOT / place.partition(",")[0].split()[0]).read_text()
        assert f"def {name.rpartition('.')[2]}(" in source or f"class {name}(" in source


def test_every_given_function_belongs_to_an_exercise():
    made = {
        function.__name__
        for e in exercises.ORDERED
        for function in (e.forward, e.asked)
        if function
    }
    assert made == {name for name in vars(given) if not name.startswith("_")} - {"np"}


# -- planted errors --------------------------------------------------------------------------------

RIGHT = {
    "linear": "return dy @ w.T, x.T @ dy, dy.sum(axis=0)",
    "gelu_tanh": """
c = (2 / np.pi) ** 0.5
t = np.tanh(c * (x + 0.044715 * x**3))
return 0.5 * (1 + t + x * (1 - t**2) * c * (1 + 3 * 0.044715 * x**2)) * dy""",
    "embedding": """
du = np.zeros(shape)
for s in range(shape[0]):
    np.add.at(du[s], index[s], dh)
return du""",
    "adamw": """
m = b1 * m + (1 - b1) * g
v = b2 * v + (1 - b2) * g**2
mean = m / (1 - b1**t)
root = np.sqrt(v / (1 - b2**t)) + eps
return w - lr * mean / root - lr * weight_decay * w, m, v""",
    "softmax": "return y * (dy - (dy * y).sum(axis=-1, keepdims=True))",
    "cross_entropy": """
exps = np.exp(logits - logits.max(axis=-1, keepdims=True))
y = exps / exps.sum(axis=-1, keepdims=True)
y[np.arange(len(y)), target] -= 1
return y / len(y) * dloss""",
    "layernorm": """
d = gain * dy
inner = d - d.mean(axis=-1, keepdims=True) - xhat * (d * xhat).mean(axis=-1, keepdims=True)
return rstd * inner, (dy * xhat).sum(axis=0), dy.sum(axis=0)""",
    "batchnorm": """
d = gain * dy
inner = d - d.mean(axis=0) - xhat * (d * xhat).mean(axis=0)
return rstd * inner, (dy * xhat).sum(axis=0), dy.sum(axis=0)""",
    "attention": """
dA = dy @ v.swapaxes(-1, -2)
dS = A * (dA - (dA * A).sum(axis=-1, keepdims=True))
root = q.shape[-1] ** 0.5
return dS @ k / root, dS.swapaxes(-1, -2) @ q / root, A.swapaxes(-1, -2) @ dy""",
    "conv": """
_, H, W, _ = x.shape
padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
dpadded = np.zeros_like(padded)
dw = np.zeros_like(w)
for u in range(len(w)):
    for v in range(len(w)):
        i = slice(u, u + padded.shape[1] - len(w) + 1, stride)
        j = slice(v, v + padded.shape[2] - len(w) + 1, stride)
        dw[u, v] = np.einsum("bijc,bijn->cn", padded[:, i, j], dy)
        dpadded[:, i, j] += dy @ w[u, v].T
return dpadded[:, pad : H + pad, pad : W + pad], dw, dy.sum(axis=(0, 1, 2))""",
    "apjn": """
J = [(v * v).sum() / len(v)]
for h, w in layers[::-1]:
    v = (v @ w.T) * (1 - np.tanh(h) ** 2)
    J.append((v * v).sum() / len(v))
return np.array(J[::-1])""",
    "tangent_pair": """
s = 1 - y**2
dz = s * dy - 2 * y * ydot * dydot
dzdot = s * dydot
return dz @ w.T, dzdot @ w.T, x.T @ dz + xdot.T @ dzdot, dz.sum(axis=0)""",
}


@pytest.mark.parametrize("name", NAMES)
def test_plain_solutions_are_right(name, tmp_path, capsys):
    code, printed = marked(name, written(name, RIGHT[name]), tmp_path, capsys)
    assert code == 0, printed


# Exercise, what of RIGHT becomes what, the only wrong tensor, and its hint.
PLANTED = [
    ("linear", "dy @ w.T,", "-dy @ w.T,", "dx", "every entry has the wrong sign"),
    ("linear", "x.T @ dy", "dy.T @ x", "dw", "it is the transpose of what it should be"),
    ("linear", "dy.sum(axis=0)", "dy", "db", "a sum over its axis 0 is missing"),
    ("linear", "dy.sum(axis=0)", "dy.mean(axis=0)", "db", "every wrong entry is 1/B times"),
    ("linear", "x.T @ dy", "2 * (x.T @ dy)", "dw", "every wrong entry is 2 times"),
    ("linear", "dy.sum(axis=0)", "dy.sum(axis=1)", "db", "a gradient has the shape of"),
    ("linear", "dy.sum(axis=0)", "dy.sum(axis=0, keepdims=True)", "db", "only the shape is wrong"),
    ("linear", "dy.sum(axis=0)", "dy.sum()", "db", "it is summed over axis 0 of what"),
    ("linear", "x.T @ dy", "np.empty_like(w)", "dw", "21 of 21 entries are nan or infinite"),
    ("linear", "x.T @ dy", "0 * w", "dw", "21 of 21 entries are 0 and should not be"),
    ("linear", "x.T @ dy", "np.tril(x.T @ dy)", "dw", "entries are 0 and should not be"),
    ("linear", "x.T @ dy", "abs(x.T @ dy)", "dw", "some entries have the wrong sign"),
    ("linear", "x.T @ dy", "(x.T @ dy).astype('float32')", "dw", "nearly right: the largest error"),
    ("linear", "x.T @ dy", "x.T @ dy + 1", "dw", "each line along axis 0 is off by a number"),
    ("linear", "x.T @ dy", "w", "dw", "no simple rule explains the difference"),
    (
        "gelu_tanh",
        "+ x * (1 - t**2) * c * (1 + 3 * 0.044715 * x**2)",
        "",
        "dx",
        "tanh depends on x",
    ),
    ("gelu_tanh", " * c * (1 + 3 * 0.044715 * x**2)", "", "dx", "the derivative of the argument"),
    ("gelu_tanh", "0.044715 * x**3", "0.0447 * x**3", "dx", "nearly right"),
    ("embedding", "np.add.at(du[s], index[s], dh)", "du[s, index[s]] += dh", "du", "only the last"),
    ("embedding", "np.zeros(", "np.empty(", "du", "entries are nan or infinite: never written"),
    ("adamw", " / (1 - b1**t)", "", "w", "m is not divided by the sum of its weights"),
    ("adamw", " / (1 - b2**t)", "", "w", "v is not divided by the sum of its weights"),
    ("adamw", "g**2", "g", "v", "no simple rule"),
    ("adamw", "g**2", "g**2 * 2", "v", "every wrong entry is 2 times"),
    ("adamw", "- lr * mean", "+ lr * mean", "w", "w goes up the gradient"),
    ("adamw", "- lr * weight_decay * w", "", "w", "there is no weight decay"),
    ("adamw", "lr * weight_decay", "weight_decay", "w", "not multiplied by lr"),
    (
        "adamw",
        "np.sqrt(v / (1 - b2**t)) + eps",
        "np.sqrt(v / (1 - b2**t) + eps)",
        "w",
        "under the root",
    ),
    ("adamw", "np.sqrt(v / (1 - b2**t))", "v / (1 - b2**t)", "w", "the root of the mean"),
    (
        "softmax",
        "(dy - (dy * y).sum(axis=-1, keepdims=True))",
        "(1 - y) * dy",
        "dx",
        "only dy_c/dx_c",
    ),
    (
        "softmax",
        "(dy - (dy * y).sum(axis=-1, keepdims=True))",
        "dy",
        "dx",
        "sum in the denominator",
    ),
    ("softmax", "y * (dy", "(dy", "dx", "no simple rule"),
    ("cross_entropy", "/ len(y) ", "", "dlogits", "every wrong entry is B times"),
    ("cross_entropy", "/ len(y) ", "/ y.size ", "dlogits", "every wrong entry is 1/C times"),
    ("cross_entropy", "y[np.arange(len(y)), target] -= 1\n", "", "dlogits", "z_target is missing"),
    ("cross_entropy", " * dloss", "", "dlogits", "dloss is missing"),
    ("cross_entropy", " * dloss", "* dloss**2", "dlogits", "every wrong entry is a number times"),
    ("layernorm", "- xhat * (d * xhat).mean(axis=-1, keepdims=True)", "", "dx", "rstd is taken as"),
    ("layernorm", "- d.mean(axis=-1, keepdims=True) ", "", "dx", "the mean is taken as a constant"),
    ("layernorm", "rstd * inner", "inner", "dx", "each line along axis 1 is off by a factor"),
    (
        "layernorm",
        "(dy * xhat).sum(axis=0)",
        "dy.sum(axis=0)",
        "dgain",
        "it is what dshift should be",
    ),
    ("layernorm", "axis=-1", "axis=0", "dx", "the means go over the batch"),
    ("batchnorm", "- xhat * (d * xhat).mean(axis=0)", "", "dx", "rstd is taken as a constant"),
    ("batchnorm", "rstd * inner", "rstd * d", "dx", "mean and rstd are taken as constants"),
    ("batchnorm", "- d.mean(axis=0) ", "", "dx", "the mean is taken as a constant"),
    ("attention", "dS @ k / root", "dS @ k", "dq", "every wrong entry is sqrt D times"),
    ("attention", "dS.swapaxes(-1, -2) @ q", "dS @ q", "dk", "a transpose is missing"),
    ("attention", "A.swapaxes(-1, -2) @ dy", "A @ dy", "dv", "a transpose is missing"),
    ("conv", "dpadded[:, i, j] += ", "dpadded[:, i, j] = ", "dx", "only the last one counts"),
    (
        "conv",
        "dpadded[:, pad : H + pad, pad : W + pad]",
        "dpadded[:, :H, :W]",
        "dx",
        "at the corner",
    ),
    (
        "conv",
        "dpadded[:, pad : H + pad, pad : W + pad]",
        "dpadded",
        "dx",
        "a gradient has the shape",
    ),
    (
        "conv",
        "dy.sum(axis=(0, 1, 2))",
        "dy.sum(axis=(0, 1))",
        "db",
        "a sum over its axis 0 is missing",
    ),
    ("apjn", " * (1 - np.tanh(h) ** 2)", "", "J", "the slope of tanh is missing"),
    ("apjn", ".sum() / len(v)", ".sum()", "J", "every wrong entry is B times"),
    ("apjn", ".sum() / len(v)", ".mean()", "J", "squares are divided by N_l too"),
    ("apjn", "J[::-1]", "J", "J", "the estimates stand in the order of the pass"),
    (
        "tangent_pair",
        "- 2 * y * ydot * dydot",
        "",
        "dx",
        "the slope 1 - y^2 is taken as a constant",
    ),
    ("tangent_pair", " + xdot.T @ dzdot", "", "dw", "w acts on ydot through xdot w too"),
    ("tangent_pair", "x.T @ dz + ", "", "dw", "w acts on y, and on the slope"),
]


@pytest.mark.parametrize(("name", "right", "wrong", "tensor", "hint"), PLANTED)
def test_an_error_gets_its_hint(name, right, wrong, tensor, hint, tmp_path, capsys):
    body = RIGHT[name]
    assert right in body
    code, printed = marked(name, written(name, body.replace(right, wrong)), tmp_path, capsys)
    assert code == 1, printed
    assert re.search(rf"^{tensor} .* WRONG$", printed, re.MULTILINE), printed
    found = re.search(rf"^{tensor}(:| has) [^$]*?^(hint: .*)", printed, re.MULTILINE)
    assert found is not None
    assert hint in found[2], printed


def test_wrong_entries_are_shown_with_what_was_expected(tmp_path, capsys):
    body = RIGHT["softmax"].replace("return ", "dx = ") + "\ndx[1, 2] = -3\nreturn dx"
    code, printed = marked("softmax", written("softmax", body), tmp_path, capsys)
    assert code == 1
    assert "dx: 1 of 6 entries are wrong (B = 2, C = 3); the first:" in printed
    exercise = exercises.find("softmax")
    case = exercise.case(0)
    dy, cache = exercise.arguments(exercise.forward, case)
    dx = loss.softmax_backward(DEV, dy, cache)
    (line,) = [line for line in printed.splitlines() if "dx[1,2]" in line]
    assert line.split()[:2] == ["dx[1,2]", "yours"]
    assert float(line.split()[2]) == -3
    assert abs(float(line.split()[4]) - dx[1, 2]) < 1e-11


def test_every_known_mistake_is_one_and_gets_its_hint():
    """A mistake differs from what is right, in every case but those where it says nothing; no two
    of an exercise are the same."""
    for exercise in exercises.ORDERED:
        for number in range(len(exercise.sizes)):
            arguments = exercise.arguments(exercise.forward, exercise.case(number))
            expected = exercise.expected(exercise.forward, exercise.case(number), arguments)
            results = exercise.known(arguments)
            assert len(results) == len(exercise.mistakes)
            for text, tensors in results:
                told = [
                    not np.allclose(x, right.value, rtol=1e-6)
                    for x, right in zip(tensors, expected, strict=True)
                    if x is not None
                ]
                assert any(told), f"{exercise.name}: {text}"


# -- what a student's file may do ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "right", "wrong", "expected"),
    [
        (
            "linear",
            "y = x @ w + b",
            "y = x @ w - b",
            "linear_forward WRONG: it gives other numbers than the one that was given",
        ),
        (
            "softmax",
            "return y * (dy",
            "dy *= y; return (dy",
            "softmax_backward WRONG: it changes arrays that it gets",
        ),
        (
            "softmax",
            "return y * (dy",
            "kept.append(1); return len(kept) * y * (dy",
            "softmax_backward WRONG: called twice, it returns other numbers",
        ),
    ],
)
def test_what_is_no_entry_is_a_remark(name, right, wrong, expected, tmp_path, capsys):
    text = written(name, RIGHT[name], "kept = []\n")
    assert right in text
    code, printed = marked(name, text.replace(right, wrong), tmp_path, capsys)
    assert code == 1
    assert printed.count(expected) == 1


@pytest.mark.parametrize("other", ["y = np.abs(exps) /", "y = (exps + 0 * np.floor(x)) /"])
def test_a_forward_that_is_not_analytic_is_judged_by_differences(other, tmp_path, capsys):
    """The same numbers by other means: abs has no complex derivative, floor no complex numbers."""
    text = written("softmax", RIGHT["softmax"]).replace("y = exps /", other)
    code, printed = marked("softmax", text, tmp_path, capsys)
    assert code == 0, printed
    wrong = text.replace("y * (dy", "1.001 * y * (dy")
    code, printed = marked("softmax", wrong, tmp_path, capsys)
    assert code == 1, printed


REFUSED = {
    "missing function": (("def softmax_backward", "def backward"), "no function softmax_backward"),
    "missing forward": (("def softmax_forward", "def forward"), "no function softmax_forward"),
    "too many": (("return y * (dy", "return dy, y * (dy"), "must return dx, not 2 of them"),
    "nothing": (("return y * (dy", "y * (dy"), "must return dx, and dx is None"),
    "complex": (("return y * (dy", "return 1j * y * (dy"), "dx is ndarray of complex128"),
    "text": (("return y * (dy", "return 'dx'; (dy"), "dx is str of "),
    "error": (("return y * (dy", "return yy * (dy"), ", line {last}: NameError: name 'yy' is not"),
    "leaves": (("return y * (dy", "raise SystemExit(0); (dy"), ", line {last}: SystemExit: 0"),
    "interrupt": (("return y * (dy", "raise KeyboardInterrupt; (dy"), "KeyboardInterrupt: "),
    "deep": (("return y * (dy", "return softmax_backward(dy, cache); (dy"), "RecursionError: "),
    "no cache": (("return y, (y,)", "return y"), "softmax_forward must return two things"),
    "unknown": (('EXERCISE = "softmax"', 'EXERCISE = "sofmax"'), "did you mean softmax?"),
    "no name": (('EXERCISE = "softmax"', "EXERCISE = None"), "there is no exercise 'None'"),
    "syntax": (("def softmax_backward(", "def softmax_backward(("), ", line "),
    "at import": (
        ("import numpy as np", "import numpyy as np"),
        "line {numpy}: ModuleNotFoundError: ",
    ),
    "NUL": (("import numpy as np", "import numpy as np\0"), "null bytes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_marked_is_one_line(name, tmp_path, capsys):
    (right, wrong), expected = REFUSED[name]
    text = written("softmax", RIGHT["softmax"])
    assert right in text
    with pytest.raises(InputError) as refused:
        marked("softmax", text.replace(right, wrong), tmp_path, capsys)
    line = str(refused.value)
    lines = text.splitlines()
    places = {"numpy": lines.index("import numpy as np") + 1, "last": len(lines)}
    assert expected.format(**places) in line
    assert "\n" not in line
    assert line.startswith(str(tmp_path / "softmax.py"))


def test_files_that_are_none(tmp_path):
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "latin.py").write_bytes(b"x = '\xff\xfe'\n")
    (tmp_path / "bom.py").write_bytes(b"\xef\xbb\xbfx = 1\n")
    (tmp_path / "text.txt").write_text("x = 1\n")
    for file, expected in {
        "none.py": "No such file or directory",
        "folder.py": "Is a directory",
        ".": "Is a directory",
        "latin.py": "utf-8",
        "text.txt": "not the name of a Python file",
    }.items():
        with pytest.raises(InputError, match=expected) as refused:
            own_file.load(tmp_path / file)
        assert "\n" not in str(refused.value)
    assert own_file.load(tmp_path / "bom.py")["x"] == 1


# -- the commands ----------------------------------------------------------------------------------


@pytest.mark.parametrize("script", [example, audit_gradients])
def test_the_help_says_that_the_file_is_run(script, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        script.arguments(["--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert script.__doc__.splitlines()[0] in printed
    assert "your own code" in printed


def test_a_bad_flag_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        example.main(["softmax", "--dtype", "float32"])
    assert left.value.code == 2
    assert capsys.readouterr().err == (
        "exercise.py: error: unrecognized arguments: --dtype float32\n"
    )


def test_the_list(tmp_path, capsys):
    assert example.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [[str(i), n] for i, n in enumerate(NAMES, 1)]
    assert max(map(len, lines)) <= 100
    levels = [exercise.level for exercise in exercises.ORDERED]
    assert levels == sorted(levels)
    assert example.main([]) == 0
    assert capsys.readouterr().out.splitlines() == lines


def test_a_file_is_never_overwritten(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "softmax.py").write_text("my work")
    for flags in (["softmax"], ["5"], ["softmax", "--out", "."], ["linear", "--out", "softmax.py"]):
        with pytest.raises(InputError, match=r"softmax.py exists: it stays as it is"):
            example.main(flags)
    assert (tmp_path / "softmax.py").read_text() == "my work"
    assert example.main(["softmax", "--out", "again.py"]) == 0
    assert "softmax_backward" in (tmp_path / "again.py").read_text()
    assert capsys.readouterr().out.endswith("--file again.py\n")
    for out, expected in {
        "none/x.py": "No such file or directory",
        "x.txt": "neither a folder nor",
        "none": "neither a folder nor",
    }.items():
        with pytest.raises(InputError, match=expected):
            example.main(["softmax", "--out", out])
    assert {path.name for path in tmp_path.iterdir()} == {"softmax.py", "again.py"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sofmax", "there is no exercise 'sofmax': did you mean softmax? exercise.py --list"),
        ("13", "there is no exercise '13': exercise.py --list shows all of them"),
        ("0", "there is no exercise '0': "),
        ("zzz", "there is no exercise 'zzz': exercise.py --list"),
    ],
)
def test_an_unknown_name_is_one_line(name, expected):
    with pytest.raises(InputError) as refused:
        example.main([name])
    assert str(refused.value).startswith(expected)


@pytest.mark.slow
def test_a_student_from_the_list_to_the_end(tmp_path):
    """As processes: write, mark the empty file, mark a wrong and a right one; prints are seen."""
    done = run("exercise", "softmax", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    file = tmp_path / "softmax.py"
    done = run("audit_gradients", "--file", file.name, cwd=tmp_path)
    assert done.returncode == 1
    assert "softmax_backward is not written yet" in done.stdout
    body = "print('here', dy.shape)\n" + RIGHT["softmax"]
    file.write_text(written("softmax", body))
    done = run("audit_gradients", "--file", file.name, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("here (2, 3)\n") == 1
    assert "softmax.py: exercise 5 of 12, softmax; your code is run as it is" in done.stdout
    assert done.stdout.endswith(f"  python {EXAMPLES / 'exercise.py'} cross_entropy\n")
    assert [path.name for path in tmp_path.iterdir()] == ["softmax.py"]  # nothing is saved


LOOP = written("softmax", "while True: pass")
UNSTOPPABLE = written(
    "softmax",
    """
open("began", "w").close()
while True:
    try:
        while True:
            pass
    except BaseException:
        pass""",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "flags", "expected"),
    [
        (
            LOOP,
            ["--seconds", "1"],
            f", line {len(LOOP.splitlines())}: softmax_backward did not return in 1 s",
        ),
        (UNSTOPPABLE, ["--seconds", "1"], ": softmax_backward did not return in 1 s"),
        ("while True: pass", ["--seconds", "1"], ", line 1: <module> did not return in 1 s"),
        ("import os; os._exit(0)", [], " ended Python, with exit code 0"),
        ("import os; os.abort()", [], " ended Python, with exit code -6"),
        ("input()", [], ", line 1: EOFError"),
        (LOOP, ["--op", "softmax"], "--op is for pairs"),
        ("def cube_forward(dev, x): return x, ()", [], "cube has no cube_backward"),
    ],
    ids=["loop", "except", "import", "exit", "abort", "input", "op", "pair"],
)
def test_a_file_cannot_keep_the_audit(text, flags, expected, tmp_path):
    (tmp_path / "softmax.py").write_text(text)
    done = run("audit_gradients", "--file", "softmax.py", *flags, cwd=tmp_path)
    assert done.returncode == 2, done
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("audit_gradients.py: error: ")
    assert expected in done.stderr
    assert "softmax.py" in done.stderr


def alive(group):
    """Whether a process of the group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_at_once(number, tmp_path):
    """Even a file that catches everything; no process is left."""
    (tmp_path / "softmax.py").write_text(UNSTOPPABLE)
    script = str(EXAMPLES / "audit_gradients.py")
    command = [sys.executable, script, "--file", "softmax.py"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not (tmp_path / "began").exists():
        assert process.poll() is None
        time.sleep(0.01)
    began = time.perf_counter()
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    _, printed = process.communicate(timeout=30)
    assert time.perf_counter() - began < 5
    assert process.returncode == 130
    assert printed == "\ninterrupted\n"
    while alive(process.pid):
        assert time.perf_counter() - began < 10
        time.sleep(0.05)
