"""Exercises as a student meets them: the list, the files, solutions, planted errors, bad files."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))

import _exercises as exercises  # noqa: E402
import _exercises_given as given  # noqa: E402
import _exercises_marking as marking  # noqa: E402
import _own_file as own_file  # noqa: E402
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
from tinygrok.ops import activation, attention, conv, embedding, linear, loss, norm, reference
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
return conv.conv_backward(dev, dy, cache, dw, db), dw, db""",
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
