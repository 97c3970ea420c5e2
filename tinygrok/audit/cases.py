"""What the auditor checks: a Case for every operation and every model.

A builder makes a Case from its name, which seeds the tensors, and from sizes and settings; `lead`
are leading axes, (2,) an ensemble of two. BUILDERS at the end lists all cases.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from ..criticality.autoinit import jacobian_loss, sphere
from ..engine import gemm, kernels
from ..engine.rng import mask_keys
from ..models.chain import Chain
from ..models.gpt import GPT, Tokens
from ..models.mlp import TwoLayerNet
from ..models.protocol import TRAINING, Mode
from ..ops import activation, attention, conv, dropout, embedding, linear, loss, norm
from .checker import Case, Tensors, cpu_device

DEV = cpu_device()
COMPLEX = cpu_device("complex128")


def _dev(tensors: Tensors):
    """The complex device when a complex step passes through."""
    is_complex = any(x.dtype.kind == "c" for x in tensors.values())
    return COMPLEX if is_complex else DEV


def _rng(name: str) -> np.random.Generator:
    letters = np.frombuffer(name.encode(), dtype=np.uint8)
    return np.random.default_rng(letters.astype(np.uint32))


def _normal(name: str, **shapes) -> Tensors:
    """Normal tensors of these shapes, of one decimal: easy to follow by hand."""
    rng = _rng(name)
    return {k: rng.standard_normal(shape).round(1) for k, shape in shapes.items()}


def _case(
    name: str, inputs: Tensors, run: Callable, back: Callable, source: tuple, analytic=True
) -> Case:
    """run(tensors) -> (y, cache); back(dy, cache, g) writes gradients into g or into its arrays."""

    def forward(tensors):
        y, _ = run(tensors)
        return {"y": y}

    def backward(tensors, cotangents):
        _, cache = run(tensors)
        g = {k: np.full_like(x, np.nan) for k, x in tensors.items()}
        back(cotangents["y"], cache, g)
        return g

    return Case(name, inputs, forward, backward, source, analytic)


def _pair(
    name: str, inputs: Tensors, run: Callable, forward: Callable, backward: Callable, analytic=True
) -> Case:
    """An operation of ops: backward(dev, dy, cache, *gradients of its parameters) -> dx.

    The first input is x, the others are the parameters; run calls forward.
    """
    x, *parameters = inputs

    def back(dy, cache, g):
        g[x] = backward(DEV, dy, cache, *[g[k] for k in parameters])

    return _case(name, inputs, run, back, (forward, backward), analytic)


def _plain(
    name: str, inputs: Tensors, forward: Callable, backward: Callable, *settings, analytic=True
) -> Case:
    """An operation whose forward takes (dev, x, *parameters, *settings)."""

    def run(t):
        return forward(_dev(t), *t.values(), *settings)

    return _pair(name, inputs, run, forward, backward, analytic)


# -- operations ------------------------------------------------------------------------------------


def _linear(name: str, **shapes) -> Case:
    inputs = _normal(name, **shapes)
    return _plain(name, inputs, linear.linear_forward, linear.linear_backward)


def _matmul(name: str, ta: bool, tb: bool) -> Case:
    """y = A B, dA = dy B^T, dB = A^T dy; A is a or a^T (ta), B is b or b^T (tb)."""
    a = (2, 4, 3) if ta else (2, 3, 4)
    b = (2, 2, 4) if tb else (2, 4, 2)
    inputs = _normal(name, a=a, b=b)

    def run(t):
        y = gemm.matmul(_dev(t), t["a"], t["b"], ta=ta, tb=tb)
        return y, (t["a"], t["b"])

    def back(dy, cache, g):
        a, b = cache
        if ta:
            g["a"] = gemm.matmul(DEV, b, dy, ta=tb, tb=True)
        else:
            g["a"] = gemm.matmul(DEV, dy, b, tb=not tb)
        if tb:
            g["b"] = gemm.matmul(DEV, dy, a, ta=True, tb=ta)
        else:
            g["b"] = gemm.matmul(DEV, a, dy, ta=not ta)

    return _case(name, inputs, run, back, (gemm.matmul,))


def _embedding(name: str, terms: int, lead=(), own_inputs=False) -> Case:
    """Tables (terms, P, N) summed over terms; own_inputs: every member has its own rows."""
    P = 5
    N = 3
    B = 7
    inputs = _normal(name, u=(*lead, terms, P, N))
    shape = (*lead, terms, B) if own_inputs else (terms, B)
    index = _rng(name).integers(0, P, shape)
    index[..., 0, :].sort(axis=-1)  # the first table takes the path of sorted inputs
    rows = embedding.RowIndex(DEV, index, P)

    def run(t):
        dev = _dev(t)
        out = dev.empty((*lead, B, N))
        return embedding.embedding_forward(dev, t["u"], rows, out)

    def back(dh, cache, g):
        embedding.embedding_backward(DEV, dh, cache, g["u"])

    source = (embedding.embedding_forward, embedding.embedding_backward)
    return _case(name, inputs, run, back, source)


ANALYTIC = ("identity", "square", "power3", "power4", "tanh", "gelu_tanh")
KINDS = ("power3", "power4", *(kind for kind in kernels.ACTIVATIONS if kind != "power"))
CURVED = tuple(kind for kind in KINDS if activation.resolve(kind)[0].curvature != "0")


def _away_from_zero(name: str) -> Tensors:
    """x (2, 3) with |x| in 0.1 to 2: no step crosses the kink of ReLU."""
    size = _rng(name).uniform(0.1, 2.0, (2, 3)).round(1)
    sign = _rng(name).choice([-1, 1], (2, 3))
    return {"x": size * sign}


def _activation(name: str, kind: str) -> Case:
    forward = activation.activation_forward
    backward = activation.activation_backward
    inputs = _away_from_zero(name)
    case = _plain(name, inputs, forward, backward, kind, analytic=kind in ANALYTIC)
    return replace(case, notes=activation.activation_table(kind))


def _second(name: str, kind: str) -> Case:
    """The second derivative is the derivative of the first: y = f'(x), dx = f''(x) dy."""

    def run(t):
        x = t["x"]
        return activation.activation_backward(_dev(t), np.ones_like(x), (x, kind)), x

    def back(dy, x, g):
        g["x"] = dy * activation.activation_second(DEV, x, kind)

    source = (activation.activation_second,)
    case = _case(name, _away_from_zero(name), run, back, source, kind in ANALYTIC)
    return replace(case, notes=activation.activation_table(kind))


def _dropout(name: str) -> Case:
    inputs = _normal(name, x=(2, 4, 3))
    keys = mask_keys([1, 2], step=3)

    def run(t):
        mask = DEV.empty(t["x"].shape)
        return dropout.dropout_forward(_dev(t), t["x"], 0.4, keys, mask=mask)

    return _pair(name, inputs, run, dropout.dropout_forward, dropout.dropout_backward)


def _batchnorm(name: str, train: bool, lead=(), weighted=False) -> Case:
    B = 5
    N = 3
    channels = (*lead, N)
    inputs = _normal(name, x=(*lead, B, N), gain=channels, shift=channels)
    mean, var = _rng(name).uniform(0.5, 1.5, (2, *channels))
    weight = _rng(name).uniform(0.5, 2.0, (*lead, B)) if weighted else None

    def run(t):
        dev = _dev(t)
        running_mean = mean.astype(dev.dtype)  # copies: training moves them
        running_var = var.astype(dev.dtype)
        return norm.batchnorm_forward(
            dev, t["x"], t["gain"], t["shift"], running_mean, running_var, train, weight
        )

    return _pair(name, inputs, run, norm.batchnorm_forward, norm.batchnorm_backward)


def _layernorm(name: str, **shapes) -> Case:
    inputs = _normal(name, **shapes)
    return _plain(name, inputs, norm.layernorm_forward, norm.layernorm_backward)


def _scale(name: str, **shapes) -> Case:
    inputs = _normal(name, **shapes)
    return _plain(name, inputs, norm.scale_forward, norm.scale_backward)


def _softmax(name: str) -> Case:
    return _plain(name, _normal(name, x=(2, 3)), loss.softmax_forward, loss.softmax_backward)


def _loss(name: str, kind: str, weighted=False, lead=()) -> Case:
    B = 4
    C = 3
    inputs = _normal(name, logits=(*lead, B, C))
    target = _rng(name).integers(0, C, (*lead, B))
    weight = None
    if weighted:
        weight = _rng(name).choice([0.0, 0.5, 1.0, 2.0], (*lead, B))
        weight[..., 0] += 1  # not all are 0
    forward, backward = loss.LOSSES[kind]
    return _plain(name, inputs, forward, backward, target, weight)


def _rotary(name: str, lead=()) -> Case:
    def run(t):
        dev = _dev(t)
        table = attention.rotary_table_host(dev, 3, 4, 2, base=10.0)
        return attention.rotary_forward(dev, t["x"], table)

    inputs = _normal(name, x=(*lead, 2, 3, 8))
    return _pair(name, inputs, run, attention.rotary_forward, attention.rotary_backward)


def _attention(
    name: str, lead=(), queries: Sequence[int] = range(4), causal=True, fused=False
) -> Case:
    """q, k and v apart, or thirds of one tensor qkv (fused)."""
    T = 4
    C = 4
    heads = 2
    if fused:
        inputs = _normal(name, qkv=(*lead, 2, T, 3 * C))
    else:
        q = (*lead, 2, len(queries), C)
        k = (*lead, 2, T, C)
        inputs = _normal(name, q=q, k=k, v=k)

    def parts(t):
        if fused:
            return np.split(t["qkv"], 3, axis=-1)
        return [t["q"], t["k"], t["v"]]

    def run(t):
        dev = _dev(t)
        mask = attention.causal_mask_host(dev, queries, T) if causal else None
        q, k, v = parts({name: x.copy() for name, x in t.items()})  # forward writes into them
        return attention.attention_forward(dev, q, k, v, heads, mask)

    def back(dy, cache, g):
        attention.attention_backward(DEV, dy, cache, *parts(g))

    source = (attention.attention_forward, attention.attention_backward)
    return _case(name, inputs, run, back, source)


def _conv(name: str, image: tuple, kernel: tuple, *settings) -> Case:
    inputs = _normal(name, x=image, w=kernel, b=kernel[-1:])
    return _plain(name, inputs, conv.conv_forward, conv.conv_backward, *settings)


def _conv_padded(name: str) -> Case:
    return _conv(name, (2, 4, 5, 2), (3, 3, 2, 3), 1, 1)  # stride, padding


def _conv_stride(name: str) -> Case:
    return _conv(name, (1, 4, 5, 1), (2, 2, 1, 2), 2)


def _maxpool(name: str) -> Case:
    inputs = _normal(name, x=(2, 5, 4, 2))
    return _plain(name, inputs, conv.maxpool_forward, conv.maxpool_backward, 2, analytic=False)


def _avgpool(name: str) -> Case:
    inputs = _normal(name, x=(1, 4, 3, 2))
    return _plain(name, inputs, conv.avgpool_forward, conv.avgpool_backward, 2, 3)


# -- models ----------------------------------------------------------------------------------------


def _parameters(name: str, net, lead: tuple) -> Tensors:
    shapes = {k: (*lead, *shape) for k, shape in net.shapes.items()}
    return _normal(name, **shapes)


def _two_layer(
    name: str, kind: str, lead=(), terms=2, rate=0.0, size=(4, 3, 6), batchnorm=False
) -> Case:
    P, N, B = size
    net = TwoLayerNet(P, N, terms, kind, batchnorm=batchnorm)
    index = _rng(name).integers(0, P, (terms, B))
    rows = embedding.RowIndex(DEV, index, P)
    seeds = list(range(*lead)) if lead else 0
    dropout = (mask_keys(seeds, step=1), rate) if rate else None

    def run(t):
        dev = _dev(t)
        w = dict(t)
        for k, shape in net.buffers.items():
            w[k] = np.ones((*lead, *shape), dev.dtype)  # new ones: training moves them
        return net.forward(dev, w, rows, Mode(True, dropout))

    inputs = _parameters(name, net, lead)
    source = (TwoLayerNet.forward, TwoLayerNet.backward)
    return _case(name, inputs, run, partial(net.backward, DEV), source, kind in ANALYTIC)


def _gpt(name: str, net: GPT, positions=None, lead=()) -> Case:
    rows = _rng(name).integers(0, net.vocab, (*lead, 2, 5))
    tokens = Tokens(DEV, rows, net.vocab, positions)

    def run(t):
        return net.forward(_dev(t), t, tokens)

    inputs = _parameters(name, net, lead)
    source = (GPT.forward, GPT.backward)
    analytic = net.activation in ANALYTIC
    return _case(name, inputs, run, partial(net.backward, DEV), source, analytic)


def _gpt_rotary(name: str) -> Case:
    return _gpt(name, GPT(3, 4, 2, 2, 5), positions=slice(1, None, 2))


def _gpt_learned(name: str) -> Case:
    return _gpt(name, GPT.numbers(3, 4, 1, 1, 6, activation="gelu_tanh"))


def _gpt_digits(name: str) -> Case:
    return _gpt(name, GPT.base_b(3, 4, 1, 2, 3, 2), positions=(0, 3))


def _gpt_untied(name: str) -> Case:
    return _gpt(name, GPT(3, 4, 2, 1, 5, activation="tanh", tied=False, recompute=True))


def _gpt_ensemble(name: str) -> Case:
    net = GPT(3, 4, 1, 2, 5, activation="tanh", bias=True)
    return _gpt(name, net, positions=slice(1, 3), lead=(2,))


_layernormed = (("layernorm", "n", 4), ("act", "gelu_tanh"), ("linear", "w", 4, 4))
_batchnormed = (("batchnorm", "m", 4), ("act", "tanh"), ("linear", "v", 4, 4))
_mixed = (("swap",), ("linear", "w", 4, 4), ("swap",), ("scale", "s", 3, 0.5, False))
_pooled = (
    ("act", "tanh"),
    ("reshape", 2, 2, 3),
    ("avgpool", 2, 1),
    ("reshape", -1),
    ("linear", "c", 6, 2),
)
_stem = (("conv", "a", 1, 2, 3, 1, 1), ("act", "gelu"), ("batchnorm", "n", 2))
# name: shape of an input, and blocks; together every kind of operation
CHAINS: dict[str, tuple[tuple, list]] = {
    "norms": (
        (3,),
        [
            ("a", (("linear", "a", 3, 4),)),
            ("b", (("residual", "b", 0.7, _layernormed),)),
            ("c", (("residual", "c", 1.0, _batchnormed), ("layernorm", "o", 4))),
            ("d", (("scale", "s", 4, 0.5, True), ("linear", "d", 4, 2))),
        ],
    ),
    "tokens": (
        (4, 4, 2),
        [
            ("a", (("conv", "a", 2, 3, 2, 2, 0), ("reshape", -1, 3))),
            ("b", (("residual", "b", 0.9, _mixed),)),
            ("c", _pooled),
        ],
    ),
    "vgg": (
        (4, 4, 1),
        [
            ("a", _stem),
            ("b", (("act", "gelu"), ("maxpool", 2), ("conv", "b", 2, 2, 3, 1, 1))),
            ("c", (("act", "tanh"), ("reshape", -1), ("linear", "c", 8, 2))),
        ],
    ),
}


def _arrays(dev, net: Chain, parameters: Tensors) -> Tensors:
    """Parameters and buffers; copies, since training moves BatchNorm's statistics."""
    everything = net.init_buffers() | parameters
    return {k: a.astype(dev.dtype) for k, a in everything.items()}


def _chain(name: str, which: str) -> Case:
    """The outputs of a chain."""
    shape, blocks = CHAINS[which]
    net = Chain(blocks)
    images = _rng(name).standard_normal((3, *shape))

    def run(t):
        dev = _dev(t)
        w = _arrays(dev, net, t)
        return net.forward(dev, w, images.astype(dev.dtype), TRAINING)

    inputs = _normal(name, **net.shapes)
    source = (Chain.forward, Chain.backward)
    return _case(name, inputs, run, partial(net.backward, DEV), source, which != "vgg")


def _jacobian_loss(name: str, which: str, kind: str) -> Case:
    """The Jacobian loss of a chain's blocks, by all tensors and strengths mu."""
    shape, blocks = CHAINS[which]
    net = Chain(blocks)
    images = _rng(name).standard_normal((3, *shape))

    def probes(block, shape):
        return [sphere(_rng(f"{name} {block} {i}"), shape) for i in range(2)]

    def value(t, g=None):
        dev = _dev(t)
        w = _arrays(dev, net, t)
        return jacobian_loss(dev, net, w, images.astype(dev.dtype), probes, g, kind)

    def run(t):
        total, _ = value(t)
        return total, t

    def back(dloss, t, g):
        value(t, g)
        for gradient in g.values():
            gradient *= dloss

    strengths = {k: shape for k, shape in net.buffers.items() if k.endswith(".mu")}
    inputs = _normal(name, **net.shapes, **strengths)
    return _case(name, inputs, run, back, (Chain.forward, Chain.backward), which != "vgg")


# -- all cases -------------------------------------------------------------------------------------


def _losses() -> dict[str, Callable]:
    builders = {}
    for kind in loss.LOSSES:
        title = kind.replace("_", " ")
        builders[title] = partial(_loss, kind=kind)
        builders[f"{title} weighted"] = partial(_loss, kind=kind, weighted=True)
        builders[f"{title} weighted ensemble"] = partial(_loss, kind=kind, weighted=True, lead=(2,))
    return builders


def _jacobian_losses() -> dict[str, Callable]:
    builders = {}
    for which in CHAINS:
        for kind in ("log", "square"):
            builders[f"{kind} loss {which}"] = partial(_jacobian_loss, which=which, kind=kind)
    return builders


BUILDERS: dict[str, Callable[[str], Case]] = {
    "linear": partial(_linear, x=(2, 3), w=(3, 2), b=(2,)),
    "linear no bias": partial(_linear, x=(2, 3), w=(3, 2)),
    "linear ensemble": partial(_linear, x=(2, 2, 3), w=(2, 3, 2), b=(2, 2)),
    "matmul NN": partial(_matmul, ta=False, tb=False),
    "matmul NT": partial(_matmul, ta=False, tb=True),
    "matmul TN": partial(_matmul, ta=True, tb=False),
    "matmul TT": partial(_matmul, ta=True, tb=True),
    "embedding": partial(_embedding, terms=1),
    "embedding pair": partial(_embedding, terms=2),
    "embedding ensemble": partial(_embedding, terms=3, lead=(2,)),
    "embedding own inputs": partial(_embedding, terms=2, lead=(2,), own_inputs=True),
    **{f"activation {kind}": partial(_activation, kind=kind) for kind in KINDS},
    **{f"second {kind}": partial(_second, kind=kind) for kind in CURVED},
    "dropout": _dropout,
    "batchnorm train": partial(_batchnorm, train=True),
    "batchnorm weighted": partial(_batchnorm, train=True, lead=(2,), weighted=True),
    "batchnorm eval": partial(_batchnorm, train=False),
    "layernorm": partial(_layernorm, x=(3, 5), gain=(5,), shift=(5,)),
    "layernorm no shift": partial(_layernorm, x=(2, 3, 5), gain=(2, 5)),
    "scale": partial(_scale, x=(2, 3, 4), gain=(2, 4), shift=(2, 4)),
    "softmax": _softmax,
    **_losses(),
    "two-layer square": partial(_two_layer, kind="square"),
    "two-layer by hand": partial(_two_layer, kind="square", size=(2, 2, 2)),
    "two-layer power3": partial(_two_layer, kind="power3", terms=3),
    "two-layer gelu": partial(_two_layer, kind="gelu"),
    "two-layer ensemble": partial(_two_layer, kind="square", lead=(2,)),
    "two-layer batchnorm": partial(_two_layer, kind="square", lead=(2,), batchnorm=True),
    "two-layer dropout": partial(_two_layer, kind="square", lead=(2,), rate=0.4),
    "rotary": _rotary,
    "rotary ensemble": partial(_rotary, lead=(2,)),
    "attention": _attention,
    "attention fused": partial(_attention, fused=True),
    "attention ensemble": partial(_attention, lead=(2,), fused=True),
    "attention some queries": partial(_attention, lead=(2,), queries=(1, 2)),
    "attention not causal": partial(_attention, causal=False),
    "gpt rotary": _gpt_rotary,
    "gpt learned": _gpt_learned,
    "gpt digits": _gpt_digits,
    "gpt untied, recompute": _gpt_untied,
    "conv": _conv_padded,
    "conv stride": _conv_stride,
    "maxpool": _maxpool,
    "avgpool": _avgpool,
    **{f"chain {which}": partial(_chain, which=which) for which in CHAINS},
    **_jacobian_losses(),
    "gpt ensemble": _gpt_ensemble,
}


def cases(pattern: str = "") -> list[Case]:
    """Every case whose name contains the pattern.

    >>> from tinygrok.audit import cases
    >>> [case.name for case in cases("linear")]
    ['linear', 'linear no bias', 'linear ensemble']
    """
    return [build(name) for name, build in BUILDERS.items() if pattern in name]
