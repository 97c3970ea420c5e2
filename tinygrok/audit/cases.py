"""What the auditor checks: a Case for every operation, with and without the ensemble axis, and for
every model."""

from collections.abc import Callable
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
from .checker import Case, cpu_device

DEV = cpu_device()
COMPLEX = cpu_device("complex128")


def _dev(tensors):
    """The complex device when a complex step passes through."""
    return COMPLEX if any(x.dtype.kind == "c" for x in tensors.values()) else DEV


def _rng(name: str) -> np.random.Generator:
    return np.random.default_rng(np.frombuffer(name.encode(), dtype=np.uint8).astype(np.uint32))


def _normal(name: str, **shapes) -> dict[str, np.ndarray]:
    rng = _rng(name)
    return {
        k: rng.standard_normal(s).round(1) for k, s in shapes.items()
    }  # one decimal: easy to follow by hand


def _case(
    name: str, inputs: dict, run: Callable, back: Callable, source: tuple, analytic=True
) -> Case:
    """run(tensors) -> (output, cache);  back(cotangent, cache, g) writes the gradients, into g or its arrays."""

    def backward(t, v):
        g = {k: np.full_like(x, np.nan) for k, x in t.items()}
        back(v["y"], run(t)[1], g)
        return g

    return Case(name, inputs, lambda t: {"y": run(t)[0]}, backward, source, analytic)


def _plain(name: str, module, which: str, inputs: dict, *settings, analytic=True) -> Case:
    """WHICH_forward(dev, x, *parameters, *settings) and WHICH_backward(dev, dy, cache, *gradients
    of the parameters) -> dx"""
    forward, back = (
        getattr(module, f"{which}_{direction}") for direction in ("forward", "backward")
    )

    write = lambda dy, cache, g: g.update(x=back(DEV, dy, cache, *[g[k] for k in g if k != "x"]))  # noqa: E731
    return _case(
        name,
        inputs,
        lambda t: forward(_dev(t), *t.values(), *settings),
        write,
        (forward, back),
        analytic,
    )


def _gemm(name: str, ta: bool, tb: bool) -> Case:
    inputs = _normal(name, a=(2, 4, 3) if ta else (2, 3, 4), b=(2, 2, 4) if tb else (2, 4, 2))

    def forward(t):
        return {"c": gemm.matmul(_dev(t), t["a"], t["b"], ta=ta, tb=tb)}

    def backward(t, v):
        a, b, dc = t["a"], t["b"], v["c"]
        da = gemm.matmul(DEV, b, dc, ta=tb, tb=True) if ta else gemm.matmul(DEV, dc, b, tb=not tb)
        db = gemm.matmul(DEV, dc, a, ta=True, tb=ta) if tb else gemm.matmul(DEV, a, dc, ta=not ta)
        return {"a": da, "b": db}

    return Case(name, inputs, forward, backward, (gemm.matmul,), analytic=True)


def _embedding(name: str, lead: tuple[int, ...], terms: int, own_inputs: bool = False) -> Case:
    P, N, B = 5, 3, 7
    index = _rng(name).integers(0, P, (*(lead if own_inputs else ()), terms, B))
    index[..., 0, :].sort(axis=-1)  # the first table takes the path of sorted inputs
    rows = embedding.RowIndex(DEV, index, P)

    def run(t):
        return embedding.embedding_forward(_dev(t), t["u"], rows, _dev(t).empty((*lead, B, N)))

    back = lambda dh, cache, g: embedding.embedding_backward(DEV, dh, cache, g["u"])  # noqa: E731
    source = (embedding.embedding_forward, embedding.embedding_backward)
    return _case(name, _normal(name, u=(*lead, terms, P, N)), run, back, source)


ANALYTIC = ("identity", "square", "power3", "power4", "tanh", "gelu_tanh")


def _activation(name: str, kind: str) -> Case:
    x = _rng(name).uniform(0.1, 2.0, (2, 3)).round(1) * _rng(name).choice(
        [-1, 1], (2, 3)
    )  # away from the kink of ReLU
    return _plain(name, activation, "activation", {"x": x}, kind, analytic=kind in ANALYTIC)


def _second(name: str, kind: str) -> Case:
    """The second derivative is the derivative of the first: forward is f'(x), backward uses
    f''(x)."""
    case = _activation(name, kind)

    def run(t):
        return activation.activation_backward(_dev(t), np.ones_like(t["x"]), (t["x"], kind)), t["x"]

    back = lambda dy, x, g: g.update(x=dy * activation.activation_second(DEV, x, kind))  # noqa: E731
    return _case(name, case.inputs, run, back, (activation.activation_second,), case.analytic)


def _dropout(name: str) -> Case:
    keys = mask_keys([1, 2], step=3)

    def run(t):
        return dropout.dropout_forward(_dev(t), t["x"], 0.4, keys, mask=DEV.empty(t["x"].shape))

    back = lambda dy, cache, g: g.update(x=dropout.dropout_backward(DEV, dy, cache))  # noqa: E731
    return _case(
        name,
        _normal(name, x=(2, 4, 3)),
        run,
        back,
        (dropout.dropout_forward, dropout.dropout_backward),
    )


def _batchnorm(name: str, lead: tuple[int, ...], train: bool, weighted: bool = False) -> Case:
    B, N = 5, 3
    inputs = _normal(name, x=(*lead, B, N), gain=(*lead, N), shift=(*lead, N))
    mean, var = _rng(name).uniform(0.5, 1.5, (2, *lead, N))
    weight = _rng(name).uniform(0.5, 2.0, (*lead, B)) if weighted else None

    def run(t):
        d = _dev(t)
        dtype = d.dtype
        running = mean.astype(dtype), var.astype(dtype)  # copies: training moves them
        return norm.batchnorm_forward(d, t["x"], t["gain"], t["shift"], *running, train, weight)

    back = lambda dy, cache, g: g.update(
        x=norm.batchnorm_backward(DEV, dy, cache, g["gain"], g["shift"])
    )  # noqa: E731
    return _case(name, inputs, run, back, (norm.batchnorm_forward, norm.batchnorm_backward))


def _loss(name: str, kind: str, lead: tuple[int, ...], weighted: bool) -> Case:
    B, C = 4, 3
    target = _rng(name).integers(0, C, (*lead, B))
    weight = (
        _rng(name).choice([0.0, 0.5, 1.0, 2.0], (*lead, B)) + np.eye(B)[0] if weighted else None
    )
    forward, backward = loss.LOSSES[kind]
    run = lambda t: forward(_dev(t), t["logits"], target, weight)  # noqa: E731
    back = lambda dy, cache, g: g.update(logits=backward(DEV, dy, cache))  # noqa: E731
    return _case(name, _normal(name, logits=(*lead, B, C)), run, back, (forward, backward))


def _two_layer(
    name: str,
    lead: tuple[int, ...],
    kind: str,
    terms: int = 2,
    rate=0.0,
    size=(4, 3, 6),
    batchnorm=False,
) -> Case:
    P, N, B = size
    net = TwoLayerNet(P, N, terms, kind, batchnorm=batchnorm)
    rows = embedding.RowIndex(DEV, _rng(name).integers(0, P, (terms, B)), P)
    dropout = (mask_keys(list(range(*lead)) if lead else 0, step=1), rate) if rate else None
    state = {k: np.ones((*lead, *shape)) for k, shape in net.buffers.items()}

    def run(t):
        d = _dev(t)
        buffers = {k: x.astype(d.dtype) for k, x in state.items()}  # copies: training moves them
        return net.forward(d, {**t, **buffers}, rows, Mode(True, dropout))

    inputs = _normal(name, **{k: (*lead, *s) for k, s in net.shapes.items()})
    return _case(
        name,
        inputs,
        run,
        partial(net.backward, DEV),
        (TwoLayerNet.forward, TwoLayerNet.backward),
        kind in ANALYTIC,
    )


def _rotary(name: str, lead: tuple[int, ...]) -> Case:
    def run(t):
        return attention.rotary_forward(
            _dev(t), t["x"], attention.rotary_table_host(_dev(t), 3, 4, 2, base=10.0)
        )

    back = lambda dy, cache, g: g.update(x=attention.rotary_backward(DEV, dy, cache))  # noqa: E731
    return _case(
        name,
        _normal(name, x=(*lead, 2, 3, 8)),
        run,
        back,
        (attention.rotary_forward, attention.rotary_backward),
    )


def _attention(
    name: str, lead: tuple[int, ...], queries=range(4), causal: bool = True, fused: bool = False
) -> Case:
    T, C, heads = 4, 4, 2
    inputs = (
        {"qkv": (*lead, 2, T, 3 * C)}
        if fused
        else {k: (*lead, 2, T if k != "q" else len(queries), C) for k in "qkv"}
    )

    def parts(t):
        return (
            [t["qkv"][..., j * C : (j + 1) * C] for j in range(3)]
            if fused
            else [t[k] for k in "qkv"]
        )

    def run(t):
        mask = attention.causal_mask_host(_dev(t), queries, T) if causal else None
        return attention.attention_forward(
            _dev(t), *parts({k: x.copy() for k, x in t.items()}), heads, mask
        )

    back = lambda dy, cache, g: attention.attention_backward(DEV, dy, cache, *parts(g))  # noqa: E731
    return _case(
        name,
        _normal(name, **inputs),
        run,
        back,
        (attention.attention_forward, attention.attention_backward),
    )


def _gpt(name: str, lead: tuple[int, ...], net: GPT, positions=None) -> Case:
    tokens = Tokens(DEV, _rng(name).integers(0, net.vocab, (*lead, 2, 5)), net.vocab, positions)

    inputs = _normal(name, **{k: (*lead, *s) for k, s in net.shapes.items()})
    run = lambda t: net.forward(_dev(t), t, tokens)  # noqa: E731
    return _case(
        name,
        inputs,
        run,
        partial(net.backward, DEV),
        (GPT.forward, GPT.backward),
        net.activation in ANALYTIC,
    )


CHAINS: dict[str, tuple] = {  # shape of an input, and blocks: together every kind of operation
    "norms": (
        (3,),
        [
            ("a", (("linear", "a", 3, 4),)),
            (
                "b",
                (
                    (
                        "residual",
                        "b",
                        0.7,
                        (("layernorm", "n", 4), ("act", "gelu_tanh"), ("linear", "w", 4, 4)),
                    ),
                ),
            ),
            (
                "c",
                (
                    (
                        "residual",
                        "c",
                        1.0,
                        (("batchnorm", "m", 4), ("act", "tanh"), ("linear", "v", 4, 4)),
                    ),
                    ("layernorm", "o", 4),
                ),
            ),
            ("d", (("scale", "s", 4, 0.5, True), ("linear", "d", 4, 2))),
        ],
    ),
    "tokens": (
        (4, 4, 2),
        [
            ("a", (("conv", "a", 2, 3, 2, 2, 0), ("reshape", -1, 3))),
            (
                "b",
                (
                    (
                        "residual",
                        "b",
                        0.9,
                        (
                            ("swap",),
                            ("linear", "w", 4, 4),
                            ("swap",),
                            ("scale", "s", 3, 0.5, False),
                        ),
                    ),
                ),
            ),
            (
                "c",
                (
                    ("act", "tanh"),
                    ("reshape", 2, 2, 3),
                    ("avgpool", 2, 1),
                    ("reshape", -1),
                    ("linear", "c", 6, 2),
                ),
            ),
        ],
    ),
    "vgg": (
        (4, 4, 1),
        [
            ("a", (("conv", "a", 1, 2, 3, 1, 1), ("act", "gelu"), ("batchnorm", "n", 2))),
            ("b", (("act", "gelu"), ("maxpool", 2), ("conv", "b", 2, 2, 3, 1, 1))),
            ("c", (("act", "tanh"), ("reshape", -1), ("linear", "c", 8, 2))),
        ],
    ),
}


def _chain(name: str, which: str, loss: str | None) -> Case:
    """The outputs of a chain, or the Jacobian loss of its blocks, which the audit differentiates by
    all its tensors."""
    (shape, blocks), probes = (
        CHAINS[which],
        lambda k, y: [sphere(_rng(f"{name} {k} {i}"), y) for i in range(2)],
    )
    net, x = Chain(blocks), _rng(name).standard_normal((3, *shape))

    def run(t, g=None):
        d = _dev(t)
        w = {
            k: a.astype(d.dtype) for k, a in (net.init_buffers() | t).items()
        }  # copies: training moves statistics
        return (
            (jacobian_loss(d, net, w, x.astype(d.dtype), probes, g, loss)[0], t)
            if loss
            else net.forward(d, w, x, TRAINING)
        )

    def back(dy, t, g):
        run(t, g)
        g.update({k: a * dy for k, a in g.items()})

    mu = {k: s for k, s in net.buffers.items() if loss and k.endswith(".mu")}
    back = back if loss else partial(net.backward, DEV)
    return _case(
        name,
        _normal(name, **net.shapes, **mu),
        run,
        back,
        (Chain.forward, Chain.backward),
        which != "vgg",
    )


def _kinds() -> list[str]:
    return ["power3", "power4", *(k for k in kernels.ACTIVATIONS if k != "power")]


BUILDERS: dict[str, Callable[[str], Case]] = {
    "linear": lambda n: _plain(n, linear, "linear", _normal(n, x=(2, 3), w=(3, 2), b=(2,))),
    "linear no bias": lambda n: _plain(n, linear, "linear", _normal(n, x=(2, 3), w=(3, 2))),
    "linear ensemble": lambda n: _plain(
        n, linear, "linear", _normal(n, x=(2, 2, 3), w=(2, 3, 2), b=(2, 2))
    ),
    **{
        f"matmul {'T' if ta else 'N'}{'T' if tb else 'N'}": lambda n, ta=ta, tb=tb: _gemm(n, ta, tb)
        for ta in (False, True)
        for tb in (False, True)
    },
    "embedding": lambda n: _embedding(n, (), terms=1),
    "embedding pair": lambda n: _embedding(n, (), terms=2),
    "embedding ensemble": lambda n: _embedding(n, (2,), terms=3),
    "embedding own inputs": lambda n: _embedding(n, (2,), terms=2, own_inputs=True),
    **{f"activation {k}": lambda n, k=k: _activation(n, k) for k in _kinds()},
    **{
        f"second {k}": lambda n, k=k: _second(n, k)
        for k in _kinds()
        if k not in ("identity", "relu", "leaky_relu")
    },
    "dropout": _dropout,
    "batchnorm train": lambda n: _batchnorm(n, (), train=True),
    "batchnorm weighted": lambda n: _batchnorm(n, (2,), train=True, weighted=True),
    "batchnorm eval": lambda n: _batchnorm(n, (), train=False),
    "layernorm": lambda n: _plain(
        n, norm, "layernorm", _normal(n, x=(3, 5), gain=(5,), shift=(5,))
    ),
    "layernorm no shift": lambda n: _plain(
        n, norm, "layernorm", _normal(n, x=(2, 3, 5), gain=(2, 5))
    ),
    "scale": lambda n: _plain(n, norm, "scale", _normal(n, x=(2, 3, 4), gain=(2, 4), shift=(2, 4))),
    "softmax": lambda n: _plain(n, loss, "softmax", _normal(n, x=(2, 3))),
    **{
        f"{kind.replace('_', ' ')}{' weighted' if w else ''}{' ensemble' if lead else ''}": (
            lambda n, kind=kind, w=w, lead=lead: _loss(n, kind, lead, w)
        )
        for kind in loss.LOSSES
        for w, lead in ((False, ()), (True, ()), (True, (2,)))
    },
    "two-layer square": lambda n: _two_layer(n, (), "square"),
    "two-layer by hand": lambda n: _two_layer(n, (), "square", size=(2, 2, 2)),
    "two-layer power3": lambda n: _two_layer(n, (), "power3", terms=3),
    "two-layer gelu": lambda n: _two_layer(n, (), "gelu"),
    "two-layer ensemble": lambda n: _two_layer(n, (2,), "square"),
    "two-layer batchnorm": lambda n: _two_layer(n, (2,), "square", batchnorm=True),
    "two-layer dropout": lambda n: _two_layer(n, (2,), "square", rate=0.4),
    "rotary": lambda n: _rotary(n, ()),
    "rotary ensemble": lambda n: _rotary(n, (2,)),
    "attention": lambda n: _attention(n, ()),
    "attention fused": lambda n: _attention(n, (), fused=True),
    "attention ensemble": lambda n: _attention(n, (2,), fused=True),
    "attention some queries": lambda n: _attention(n, (2,), queries=(1, 2)),
    "attention not causal": lambda n: _attention(n, (), causal=False),
    "gpt rotary": lambda n: _gpt(n, (), GPT(3, 4, 2, 2, 5), slice(1, None, 2)),
    "gpt learned": lambda n: _gpt(n, (), GPT.numbers(3, 4, 1, 1, 6, activation="gelu_tanh")),
    "gpt digits": lambda n: _gpt(n, (), GPT.base_b(3, 4, 1, 2, 3, 2), (0, 3)),
    "gpt untied, recompute": lambda n: _gpt(
        n, (), GPT(3, 4, 2, 1, 5, activation="tanh", tied=False, recompute=True)
    ),
    "conv": lambda n: _plain(
        n, conv, "conv", _normal(n, x=(2, 4, 5, 2), w=(3, 3, 2, 3), b=(3,)), 1, 1
    ),
    "conv stride": lambda n: _plain(
        n, conv, "conv", _normal(n, x=(1, 4, 5, 1), w=(2, 2, 1, 2), b=(2,)), 2
    ),
    "maxpool": lambda n: _plain(n, conv, "maxpool", _normal(n, x=(2, 5, 4, 2)), 2, analytic=False),
    "avgpool": lambda n: _plain(n, conv, "avgpool", _normal(n, x=(1, 4, 3, 2)), 2, 3),
    **{f"chain {k}": lambda n, k=k: _chain(n, k, None) for k in CHAINS},
    **{
        f"{loss} loss {k}": lambda n, k=k, loss=loss: _chain(n, k, loss)
        for k in CHAINS
        for loss in ("log", "square")
    },
    "gpt ensemble": lambda n: _gpt(
        n, (2,), GPT(3, 4, 1, 2, 5, activation="tanh", bias=True), slice(1, 3)
    ),
}


def cases(pattern: str = "") -> list[Case]:
    """Every case whose name contains the pattern."""
    return [build(name) for name, build in BUILDERS.items() if pattern in name]
