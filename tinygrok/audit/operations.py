"""The cases of operations: each a builder that makes a Case of its name, which seeds the tensors.

`lead` are leading axes, (2,) an ensemble of two.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from ..engine import gemm, kernels
from ..engine.rng import mask_keys
from ..ops import activation, attention, conv, dropout, embedding, linear, loss, norm
from .case import DEV, Case, Pair, Tensors, even

# Of those that have a function the first one defines it.
MODULES = (linear, embedding, activation, dropout, norm, loss, attention, conv)


def seeded(name: str) -> np.random.Generator:
    """The generator of a case."""
    return np.random.default_rng(list(name.encode()))


def sizes(shape: str | tuple) -> tuple[int, ...]:
    """ "2x3" -> (2, 3)"""
    return shape if isinstance(shape, tuple) else tuple(map(int, shape.split("x")))


def normal(name: str, **shapes) -> Tensors:
    """Normal tensors of these shapes, of one decimal: easy to follow by hand."""
    rng = seeded(name)
    return {k: rng.standard_normal(sizes(shape)).round(1) for k, shape in shapes.items()}


def pair(name: str, op: str, inputs: Tensors, *settings, **more) -> Case:
    """The case of an operation of ops."""
    module = next(module for module in MODULES if hasattr(module, f"{op}_backward"))
    functions = getattr(module, f"{op}_forward"), getattr(module, f"{op}_backward")
    return Pair(name, inputs, functions, settings, **more)


def _plain(name: str, settings: tuple = (), scale: float = 1.0, **shapes) -> Case:
    """The operation of the first word of the name, on normal tensors."""
    inputs = normal(name, **shapes)
    inputs["x"] *= scale
    return pair(name, name.split()[0], inputs, *settings)


def _matmul(name: str) -> Case:
    """y = c + a b, da = dy b^T, db = a^T dy; "matmul TN": a is stored as its transpose."""
    ta, tb = (letter == "T" for letter in name[-2:])

    def run(dev, t):
        a = t["a"].swapaxes(-1, -2).copy() if ta else t["a"]
        b = t["b"].swapaxes(-1, -2).copy() if tb else t["b"]
        y = t["c"].copy()
        return gemm.matmul(dev, a, b, y, ta=ta, tb=tb, accumulate=True), (a, b)

    def back(dev, dy, cache, g):
        a, b = cache
        gemm.matmul(dev, dy, b, g["a"], tb=not tb)
        gemm.matmul(dev, a, dy, g["b"], ta=not ta)
        g["c"] = dy

    inputs = normal(name, a="2x3x4", b="2x4x2", c="2x3x2")
    return Case(name, inputs, run, back, (gemm.matmul,))


def _embedding(name: str, u: str, inputs: int = 7, own: bool = False) -> Case:
    """Tables u (..., terms, P, N) summed over terms; own: every member has its own inputs."""
    *lead, terms, P, _ = sizes(u)
    index = seeded(name).integers(0, P, (*(lead if own else ()), terms, inputs))
    index[..., 0, :].sort(axis=-1)  # the first table takes the path of sorted inputs
    rows = partial(embedding.RowIndex, index=index, rows=P)
    return pair(name, "embedding", normal(name, u=u), rows, dx="")


POWERS = ("power1", "power3", "power4", "power9", "power11")
KINDS = (*POWERS, *(kind for kind in kernels.ACTIVATIONS if kind != "power"))


def _grid(shape: str, largest: float) -> Tensors:
    """x from -largest to largest, an even number of entries: none at 0, the kink of ReLU."""
    x = np.linspace(-largest, largest, np.prod(sizes(shape)))
    return {"x": x.reshape(sizes(shape))}


def _activation(name: str) -> Case:
    """ "activation KIND", or "wide KIND": more entries, further from 0."""
    wide, kind = name.split()
    inputs = _grid("4x67", 5.0) if wide == "wide" else _grid("2x3", 2.0)
    return pair(name, "activation", inputs, kind, notes=activation.activation_table(kind))


def _second(name: str) -> Case:
    """The second derivative is the derivative of the first: y = f'(x), dx = f''(x) dy."""
    kind = name.split()[1]

    def run(dev, t):
        x = t["x"]
        return activation.activation_backward(dev, dev.xp.ones_like(x), (x, kind)), x

    def back(dev, dy, x, g):
        activation.activation_second(dev, x, kind, g["x"])
        g["x"] *= dy

    notes = activation.activation_table(kind)
    return Case(name, _grid("4x37", 3.0), run, back, (activation.activation_second,), notes=notes)


def _dropout(name: str, rate: float | list) -> Case:
    keys = mask_keys([1, 2], step=3)
    return pair(name, "dropout", normal(name, x="2x4x3"), rate, lambda dev: keys, layout=even)


def _row_weights(*shape: int) -> np.ndarray:
    """Some are 0."""
    return np.resize([1.5, 0.0, 0.5, 2.0, 0.0], shape)


def _batchnorm(name: str, x: str, train: bool = True, weighted: bool = False) -> Case:
    *lead, rows, N = sizes(x)
    channels = (*lead, N)
    inputs = normal(name, x=x, gain=channels, shift=channels)
    mean, var = seeded(name).uniform(0.5, 1.5, (2, *channels))
    weight = _row_weights(*lead, rows) if weighted else None
    return pair(name, "batchnorm", inputs, mean, var, train, weight)


def _loss(name: str, z: str, weighted=False, norm=None, shared=False, scale=1.0) -> Case:
    """Logits z; shared: one target for all members. No logit is 0, where s'' of stablemax jumps."""
    *lead, B, C = sizes(z)
    drawn = scale * normal(name, z=z)["z"]
    inputs = {"logits": np.where(drawn == 0, 0.05, drawn)}
    target = seeded(name).integers(0, C, (B,) if shared else (*lead, B))
    weight = _row_weights(*lead, B) if weighted else None
    op = next(op for op in loss.LOSSES if name.startswith(op.replace("_", " ")))
    return pair(name, op, inputs, target, weight, norm, dx="logits", out="logits", layout=even)


LOSSES: dict[str, dict] = {
    "": {"z": "4x3"},
    " long rows": {"z": "2x3x301"},
    " many rows": {"z": "301x3", "norm": 90.0, "scale": 30.0},
    " weighted": {"z": "4x3", "weighted": True},
    " weighted ensemble": {"z": "2x4x3", "weighted": True, "norm": 2.5},
    " one target": {"z": "2x4x3", "shared": True},
}


def _rotary(name: str, x: str, positions: slice | list = slice(None)) -> Case:
    """Heads of 4 channels, at some of 5 positions; the table is made for one head more."""
    inputs = normal(name, x=x)
    heads = inputs["x"].shape[-1] // 4

    def angles(dev):
        at = positions if isinstance(positions, slice) else dev.to_device(positions)
        return attention.rotary_table_host(dev, 5, 4, heads + 1, base=10.0).at(at)

    return pair(name, "rotary", inputs, angles, layout=np.array)  # pairs stand side by side


def _attention(
    name: str, k: str, heads: int, queries: Sequence[int] = (), causal=True, scale=None
) -> Case:
    """Keys and values of a shape; queries at all positions, or some."""
    *lead, T, C = sizes(k)
    at = queries or range(T)
    inputs = normal(name, q=(*lead, len(at), C), k=k, v=k)
    mask = partial(attention.causal_mask_host, queries=at, keys=T) if causal else None
    whole = queries or not causal
    blocks = attention.WHOLE if whole else partial(attention.causal_blocks, T=T)
    options = {"blocks": blocks, "scale": scale}
    return pair(name, "attention", inputs, heads, mask, options=options, dx="")


def _conv(name: str, x: str, w: str, stride: int = 1, pad: int = 0) -> Case:
    """In chunks of two images: the last one is smaller where there are three or five."""
    inputs = normal(name, x=x, w=w, b=w.split("x")[-1])
    y, _ = conv.conv_forward(DEV, *inputs.values(), stride, pad)
    patches = y[0, :, :, 0].size * inputs["w"][..., 0].nbytes
    small = {(conv, "COLUMN_BYTES"): {"cpu": 2 * patches}}
    return pair(name, "conv", inputs, stride, pad, small=small, layout=even)


def _maxpool(name: str, x: str, window: int) -> Case:
    """No two pixels are equal."""
    pixels = seeded(name).permutation(np.prod(sizes(x))) / 10
    return pair(name, "maxpool", {"x": pixels.reshape(sizes(x))}, window)


OPERATIONS: dict[str, Callable[[str], Case]] = {
    "linear": partial(_plain, x="2x3", w="3x2", b="2"),
    "linear no bias": partial(_plain, x="2x3", w="3x2"),
    "linear ensemble": partial(_plain, x="2x2x3", w="2x3x2", b="2x2"),
    "linear large": partial(_plain, x="301x70", w="70x67", b="67"),
    **{f"matmul {layout}": _matmul for layout in ("NN", "NT", "TN", "TT")},
    "embedding": partial(_embedding, u="1x5x3"),
    "embedding pair": partial(_embedding, u="2x5x3"),
    "embedding ensemble": partial(_embedding, u="2x3x5x3"),
    "embedding own inputs": partial(_embedding, u="2x2x5x3", own=True),
    "embedding many inputs": partial(_embedding, u="3x3x2", inputs=301),
    "embedding many rows": partial(_embedding, u="2x2x67x2", inputs=40, own=True),
    **{f"activation {kind}": _activation for kind in KINDS},
    **{f"wide {kind}": _activation for kind in KINDS},
    **{f"second {kind}": _second for kind in KINDS},
    "dropout": partial(_dropout, rate=0.4),
    "dropout rates": partial(_dropout, rate=[0.0, 0.7]),
    "batchnorm train": partial(_batchnorm, x="5x3"),
    "batchnorm weighted": partial(_batchnorm, x="2x6x3", weighted=True),
    "batchnorm eval": partial(_batchnorm, x="5x3", train=False),
    "batchnorm eval ensemble": partial(_batchnorm, x="2x5x3", train=False),
    "batchnorm many rows": partial(_batchnorm, x="301x3"),
    "layernorm": partial(_plain, x="3x5", gain="5", shift="5"),
    "layernorm no shift": partial(_plain, x="2x3x5", gain="2x5"),
    "layernorm small": partial(_plain, x="3x4", gain="4", scale=0.05),
    "layernorm long rows": partial(_plain, x="3x301", gain="301", shift="301"),
    "layernorm many rows": partial(_plain, x="301x3", gain="3", shift="3"),
    "scale": partial(_plain, x="2x3x4", gain="2x4", shift="2x4"),
    "scale no shift": partial(_plain, x="301x4", gain="4"),
    "softmax": partial(_plain, x="2x3"),
    "softmax long rows": partial(_plain, x="2x3x301"),
    "softmax many rows": partial(_plain, x="301x3", scale=30.0),
    **{f"mse{title}": partial(_loss, **options) for title, options in LOSSES.items()},
    **{f"cross entropy{title}": partial(_loss, **options) for title, options in LOSSES.items()},
    **{f"stablemax{title}": partial(_loss, **options) for title, options in LOSSES.items()},
    "rotary": partial(_rotary, x="2x5x8"),
    "rotary ensemble": partial(_rotary, x="2x2x5x24"),
    "rotary some positions": partial(_rotary, x="2x2x8", positions=[1, 4]),
    "rotary every second": partial(_rotary, x="2x2x8", positions=slice(1, None, 2)),
    "attention": partial(_attention, k="2x4x4", heads=2),
    "attention ensemble": partial(_attention, k="2x2x4x4", heads=2),
    "attention some queries": partial(_attention, k="2x2x4x4", heads=2, queries=(1, 2)),
    "attention not causal": partial(_attention, k="2x4x4", heads=2, causal=False),
    "attention scale": partial(_attention, k="2x4x4", heads=2, scale=0.3),
    "attention many heads": partial(_attention, k="2x7x18", heads=6),
    "attention long": partial(_attention, k="2x131x2", heads=1),
    "self_attention": partial(_plain, x="2x4x12", settings=(2,)),
    "self_attention ensemble": partial(_plain, x="2x2x7x6", settings=(1,)),
    "conv": partial(_conv, x="2x4x5x2", w="3x3x2x3", pad=1),
    "conv stride": partial(_conv, x="3x4x5x1", w="2x2x1x2", stride=2),
    "conv 1x1": partial(_conv, x="3x5x4x3", w="1x1x3x2", stride=2),
    "conv stride, padding": partial(_conv, x="5x9x8x2", w="5x5x2x3", stride=3, pad=2),
    "conv even, padding": partial(_conv, x="5x7x6x1", w="4x4x1x2", stride=2, pad=3),
    "maxpool": partial(_maxpool, x="2x5x4x2", window=2),
    "maxpool 3": partial(_maxpool, x="2x9x11x3", window=3),
    "avgpool": partial(_plain, x="1x4x3x2", settings=(2, 3)),
    "avgpool 3": partial(_plain, x="3x9x4x5", settings=(3, 2)),
}
