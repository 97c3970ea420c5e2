"""What the auditor checks: a Case for every operation, with and without the ensemble axis, and for every model."""

from collections.abc import Callable

import numpy as np

from .audit import Case, cpu_device
from .criticality.autoinit import jacobian_loss, sphere
from .engine import gemm, kernels
from .engine.rng import mask_keys
from .models.chain import Chain
from .models.gpt import GPT, Tokens
from .models.mlp import TwoLayerNet
from .ops import activation, attention, conv, dropout, embedding, linear, loss, norm

DEV = cpu_device()
COMPLEX = cpu_device("complex128")


def _dev(tensors):
    """The complex device when a complex step passes through."""
    return COMPLEX if any(x.dtype.kind == "c" for x in tensors.values()) else DEV


def _rng(name: str) -> np.random.Generator:
    return np.random.default_rng(np.frombuffer(name.encode(), dtype=np.uint8).astype(np.uint32))


def _normal(name: str, **shapes) -> dict[str, np.ndarray]:
    rng = _rng(name)
    return {k: rng.standard_normal(s).round(1) for k, s in shapes.items()}  # one decimal: easy to follow by hand


def _plain(name: str, module, which: str, shapes: dict, *settings, analytic=True) -> Case:
    """WHICH_forward(dev, x, *parameters, *settings) and WHICH_backward(dev, dy, cache, *gradients of the parameters) -> dx"""
    forward, back = (getattr(module, f"{which}_{direction}") for direction in ("forward", "backward"))

    def run(t):
        return forward(_dev(t), *t.values(), *settings)

    def backward(t, v):
        g = {k: np.full_like(x, np.nan) for k, x in t.items() if k != "x"}
        return {"x": back(DEV, v["y"], run(t)[1], *g.values()), **g}

    return Case(name, _normal(name, **shapes), lambda t: {"y": run(t)[0]}, backward, (forward, back), analytic)


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

    def forward(t):
        out = _dev(t).empty((*lead, B, N))
        return {"h": embedding.embedding_forward(_dev(t), t["u"], rows, out)[0]}

    def backward(t, v):
        du = np.full_like(t["u"], np.nan)
        embedding.embedding_backward(DEV, v["h"], (rows,), du)
        return {"u": du}

    source = (embedding.embedding_forward, embedding.embedding_backward)
    return Case(name, _normal(name, u=(*lead, terms, P, N)), forward, backward, source, analytic=True)


ANALYTIC = ("identity", "square", "power3", "power4", "tanh", "gelu_tanh")


def _activation(name: str, kind: str) -> Case:
    x = _rng(name).uniform(0.1, 2.0, (2, 3)).round(1) * _rng(name).choice([-1, 1], (2, 3))  # away from the kink of ReLU

    def forward(t):
        return {"y": activation.activation_forward(_dev(t), t["x"], kind)[0]}

    def backward(t, v):
        return {"x": activation.activation_backward(DEV, v["y"], (t["x"], kind))}

    source = (activation.activation_forward, activation.activation_backward)
    return Case(name, {"x": x}, forward, backward, source, analytic=kind in ANALYTIC)


def _second(name: str, kind: str) -> Case:
    """The second derivative is the derivative of the first: forward is f'(x), backward uses f''(x)."""
    case = _activation(name, kind)

    def forward(t):
        return {"y": activation.activation_backward(_dev(t), np.ones_like(t["x"]), (t["x"], kind))}

    def backward(t, v):
        return {"x": v["y"] * activation.activation_second(DEV, t["x"], kind)}

    return Case(name, case.inputs, forward, backward, (activation.activation_second,), case.analytic)


def _dropout(name: str) -> Case:
    keys = mask_keys([1, 2], step=3)

    def forward(t):
        d = _dev(t)
        return {"y": dropout.dropout_forward(d, t["x"], 0.4, keys, mask=DEV.empty(t["x"].shape))[0]}

    def backward(t, v):
        _, cache = dropout.dropout_forward(DEV, t["x"], 0.4, keys)
        return {"x": dropout.dropout_backward(DEV, v["y"], cache)}

    source = (dropout.dropout_forward, dropout.dropout_backward)
    return Case(name, _normal(name, x=(2, 4, 3)), forward, backward, source, analytic=True)


def _batchnorm(name: str, lead: tuple[int, ...], train: bool, weighted: bool = False) -> Case:
    B, N = 5, 3
    inputs = _normal(name, x=(*lead, B, N), gamma=(*lead, N), beta=(*lead, N))
    mean, var = _rng(name).uniform(0.5, 1.5, (2, *lead, N))
    weight = _rng(name).uniform(0.5, 2.0, (*lead, B)) if weighted else None

    def run(t):
        d = _dev(t)
        dtype = d.dtype
        running = mean.astype(dtype), var.astype(dtype)  # copies: training moves them
        return norm.batchnorm_forward(d, t["x"], t["gamma"], t["beta"], *running, train, weight)

    def backward(t, v):
        dgamma, dbeta = np.full_like(t["gamma"], np.nan), np.full_like(t["beta"], np.nan)
        return {"x": norm.batchnorm_backward(DEV, v["y"], run(t)[1], dgamma, dbeta), "gamma": dgamma, "beta": dbeta}

    source = (norm.batchnorm_forward, norm.batchnorm_backward)
    return Case(name, inputs, lambda t: {"y": run(t)[0]}, backward, source, analytic=True)


def _loss(name: str, kind: str, lead: tuple[int, ...], weighted: bool) -> Case:
    B, C = 4, 3
    target = _rng(name).integers(0, C, (*lead, B))
    weight = _rng(name).choice([0.0, 0.5, 1.0, 2.0], (*lead, B)) + np.eye(B)[0] if weighted else None
    fwd, bwd = loss.LOSSES[kind]

    def backward(t, v):
        return {"logits": bwd(DEV, v["loss"], fwd(DEV, t["logits"], target, weight)[1])}

    return Case(
        name,
        _normal(name, logits=(*lead, B, C)),
        lambda t: {"loss": fwd(_dev(t), t["logits"], target, weight)[0]},
        backward,
        (fwd, bwd),
        analytic=True,
    )


def _two_layer(name: str, lead: tuple[int, ...], kind: str, terms: int = 2, rate=0.0, size=(4, 3, 6), batchnorm=False) -> Case:
    P, N, B = size
    net = TwoLayerNet(P, N, terms, kind, batchnorm=batchnorm)
    rows = embedding.RowIndex(DEV, _rng(name).integers(0, P, (terms, B)), P)
    dropout = (mask_keys(list(range(*lead)) if lead else 0, step=1), rate) if rate else None
    state = {k: np.ones((*lead, *shape)) for k, shape in net.buffers.items()}

    def run(t):
        d = _dev(t)
        buffers = {k: x.astype(d.dtype) for k, x in state.items()}  # copies: training moves them
        return net.forward(d, {**t, **buffers}, rows, True, dropout)

    def forward(t):
        return {"logits": run(t)[0]}

    def backward(t, v):
        g = {k: np.full_like(x, np.nan) for k, x in t.items()}
        net.backward(DEV, v["logits"], run(t)[1], g)
        return g

    inputs = _normal(name, **{k: (*lead, *s) for k, s in net.shapes.items()})
    return Case(name, inputs, forward, backward, (TwoLayerNet.forward, TwoLayerNet.backward), analytic=kind in ANALYTIC)


def _rotary(name: str, lead: tuple[int, ...]) -> Case:
    def run(t):
        return attention.rotary_forward(_dev(t), t["x"], attention.rotary_table_host(_dev(t), 3, 4, 2, base=10.0))

    def backward(t, v):
        return {"x": attention.rotary_backward(DEV, v["y"], run(t)[1])}

    source = (attention.rotary_forward, attention.rotary_backward)
    return Case(name, _normal(name, x=(*lead, 2, 3, 8)), lambda t: {"y": run(t)[0]}, backward, source, analytic=True)


def _attention(name: str, lead: tuple[int, ...], queries=range(4), causal: bool = True, fused: bool = False) -> Case:
    T, C, heads = 4, 4, 2
    inputs = {"qkv": (*lead, 2, T, 3 * C)} if fused else {k: (*lead, 2, T if k != "q" else len(queries), C) for k in "qkv"}

    def parts(t):
        return [t["qkv"][..., j * C : (j + 1) * C] for j in range(3)] if fused else [t[k] for k in "qkv"]

    def run(t):
        mask = attention.causal_mask_host(_dev(t), queries, T) if causal else None
        return attention.attention_forward(_dev(t), *parts({k: x.copy() for k, x in t.items()}), heads, mask)

    def backward(t, v):
        g = {k: np.full_like(x, np.nan) for k, x in t.items()}
        attention.attention_backward(DEV, v["y"], run(t)[1], *parts(g))
        return g

    source = (attention.attention_forward, attention.attention_backward)
    return Case(name, _normal(name, **inputs), lambda t: {"y": run(t)[0]}, backward, source, analytic=True)


def _gpt(name: str, lead: tuple[int, ...], net: GPT, positions=None) -> Case:
    tokens = Tokens(DEV, _rng(name).integers(0, net.vocab, (*lead, 2, 5)), net.vocab, positions)

    def backward(t, v):
        g = {k: np.full_like(x, np.nan) for k, x in t.items()}
        net.backward(DEV, v["logits"], net.forward(DEV, t, tokens)[1], g)
        return g

    inputs = _normal(name, **{k: (*lead, *s) for k, s in net.shapes.items()})
    forward = lambda t: {"logits": net.forward(_dev(t), t, tokens)[0]}  # noqa: E731
    return Case(name, inputs, forward, backward, (GPT.forward, GPT.backward), analytic=net.activation in ANALYTIC)


CHAINS: dict[str, tuple] = {  # shape of an input, and blocks: together every kind of operation
    "mlp": ((3,), [("a", (("linear", "a", 3, 4),)), ("b", (("act", "tanh"), ("linear", "b", 4, 2)))]),
    "norms": ((3,), [
        ("a", (("linear", "a", 3, 4),)),
        ("b", (("residual", "b", 0.7, (("layernorm", "n", 4), ("act", "gelu_tanh"), ("linear", "w", 4, 4))),)),
        ("c", (("residual", "c", 1.0, (("batchnorm", "m", 4), ("act", "tanh"), ("linear", "v", 4, 4))), ("layernorm", "o", 4))),
        ("d", (("scale", "s", 4, 0.5, True), ("linear", "d", 4, 2))),
    ]),
    "tokens": ((4, 4, 2), [
        ("a", (("conv", "a", 2, 3, 2, 2, 0), ("reshape", -1, 3))),
        ("b", (("residual", "b", 0.9, (("swap",), ("linear", "w", 4, 4), ("swap",), ("scale", "s", 3, 0.5, False))),)),
        ("c", (("act", "tanh"), ("reshape", 2, 2, 3), ("avgpool", 2, 1), ("reshape", -1), ("linear", "c", 6, 2))),
    ]),
    "vgg": ((4, 4, 1), [
        ("a", (("conv", "a", 1, 2, 3, 1, 1), ("act", "gelu"), ("batchnorm", "n", 2))),
        ("b", (("act", "gelu"), ("maxpool", 2), ("conv", "b", 2, 2, 3, 1, 1))),
        ("c", (("act", "relu"), ("reshape", -1), ("linear", "c", 8, 2))),
    ]),
}  # fmt: skip


def _chain(name: str, which: str, loss: str | None = None) -> Case:
    """The outputs of a chain, or the Jacobian loss of its blocks, which the audit differentiates by all its tensors."""
    shape, blocks = CHAINS[which]
    net, x = Chain(blocks), _rng(name).standard_normal((3, *shape))
    state = net.init_buffers()

    def tensors(t):
        return {k: a.astype(_dev(t).dtype) for k, a in (state | t).items()}  # copies: training moves statistics

    def probes(block, y):
        return [sphere(_rng(f"{name} {block} {i}"), y) for i in range(2)]

    def forward(t):
        if loss:
            return {"loss": jacobian_loss(_dev(t), net, tensors(t), x.astype(_dev(t).dtype), probes, None, loss)[0]}
        return {"logits": net.forward(_dev(t), tensors(t), x, True)[0]}

    def backward(t, v):
        g = {k: np.full_like(a, np.nan) for k, a in t.items()}
        if not loss:
            net.backward(DEV, v["logits"], net.forward(DEV, tensors(t), x, True)[1], g)
            return g
        jacobian_loss(DEV, net, tensors(t), x, probes, g, loss)
        return {k: a * v["loss"] for k, a in g.items()}

    inputs = _normal(name, **net.shapes, **({k: s for k, s in net.buffers.items() if k.endswith(".mu")} if loss else {}))
    return Case(name, inputs, forward, backward, (Chain.forward, Chain.backward), which != "vgg")


def _kinds() -> list[str]:
    return ["power3", "power4", *(k for k in kernels.ACTIVATIONS if k != "power")]


BUILDERS: dict[str, Callable[[str], Case]] = {
    "linear": lambda n: _plain(n, linear, "linear", dict(x=(2, 3), w=(3, 2), b=(2,))),
    "linear no bias": lambda n: _plain(n, linear, "linear", dict(x=(2, 3), w=(3, 2))),
    "linear ensemble": lambda n: _plain(n, linear, "linear", dict(x=(2, 2, 3), w=(2, 3, 2), b=(2, 2))),
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
    **{f"second {k}": lambda n, k=k: _second(n, k) for k in _kinds() if k not in ("identity", "relu", "leaky_relu")},
    "dropout": _dropout,
    "batchnorm train": lambda n: _batchnorm(n, (), train=True),
    "batchnorm weighted": lambda n: _batchnorm(n, (2,), train=True, weighted=True),
    "batchnorm eval": lambda n: _batchnorm(n, (), train=False),
    "layernorm": lambda n: _plain(n, norm, "layernorm", dict(x=(3, 5), gamma=(5,), beta=(5,))),
    "layernorm no shift": lambda n: _plain(n, norm, "layernorm", dict(x=(2, 3, 5), gamma=(2, 5))),
    "scale": lambda n: _plain(n, norm, "scale", dict(x=(2, 3, 4), gain=(2, 4), shift=(2, 4))),
    "softmax": lambda n: _plain(n, loss, "softmax", dict(x=(2, 3))),
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
    "gpt untied, recompute": lambda n: _gpt(n, (), GPT(3, 4, 2, 1, 5, activation="tanh", tied=False, recompute=True)),
    "conv": lambda n: _plain(n, conv, "conv", dict(x=(2, 4, 5, 2), w=(3, 3, 2, 3), b=(3,)), 1, 1),
    "conv stride": lambda n: _plain(n, conv, "conv", dict(x=(1, 4, 5, 1), w=(2, 2, 1, 2), b=(2,)), 2),
    "maxpool": lambda n: _plain(n, conv, "maxpool", dict(x=(2, 5, 4, 2)), 2, analytic=False),
    "avgpool": lambda n: _plain(n, conv, "avgpool", dict(x=(1, 4, 3, 2)), 2, 3),
    **{f"chain {k}": lambda n, k=k: _chain(n, k) for k in CHAINS},
    **{f"{loss} loss {k}": lambda n, k=k, loss=loss: _chain(n, k, loss) for k in CHAINS for loss in ("log", "square")},
    "gpt ensemble": lambda n: _gpt(n, (2,), GPT(3, 4, 1, 2, 5, activation="tanh", bias=True), slice(1, 3)),
}


def cases(pattern: str = "") -> list[Case]:
    """Every case whose name contains the pattern."""
    return [build(name) for name, build in BUILDERS.items() if pattern in name]
