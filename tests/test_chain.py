"""Chains of blocks: every rule against PyTorch and its double backward, on every device; the
models' stages and state."""

import numpy as np
import pytest

from tinygrok.audit.cases import BUILDERS
from tinygrok.audit.checker import audit
from tinygrok.criticality.autoinit import jacobian_loss, sphere
from tinygrok.engine.errors import InputError
from tinygrok.engine.params import Arena
from tinygrok.models.chain import RULES, Chain
from tinygrok.models.protocol import TRAINING
from tinygrok.ops import conv

B = 4
LAYERNORMED = (("layernorm", "n", 4), ("act", "gelu_tanh"), ("linear", "w", 4, 4))
BATCHNORMED = (("batchnorm", "m", 4), ("act", "tanh"), ("linear", "v", 4, 4))
MIXED = (("swap",), ("linear", "w", 4, 4), ("swap",), ("scale", "s", 3, 0.5, False))
POOLED = (
    ("act", "tanh"),
    ("reshape", 2, 2, 3),
    ("avgpool", 2, 1),
    ("reshape", -1),
    ("linear", "c", 6, 2),
)
ATTENDED = (
    ("layernorm", "n", 6),
    ("linear", "q", 6, 12, False),
    ("attention", 2),
    ("linear", "o", 4, 6),
)
THINNED = (("take", np.s_[:, ::2, 1:]), ("batchnorm", "t", 2), ("put", (2, 3, 4), np.s_[..., 1:3]))
WIDENED = (("act", "tanh"), ("conv", "w", 2, 4, 3, 2, 1), ("put", (2, 3, 4), np.s_[:, :, 1:]))
STEM = (("conv", "a", 1, 2, 3, 1, 1), ("act", "gelu"), ("batchnorm", "n", 2))
# name: shape of an input, and blocks; together every kind of operation
CHAINS = {
    "norms": (
        (3,),
        [
            ("a", (("linear", "a", 3, 4),)),
            ("b", (("residual", "b", 0.7, LAYERNORMED),)),
            ("c", (("residual", "c", 1.0, BATCHNORMED), ("layernorm", "o", 4))),
            ("d", (("scale", "s", 4, 0.5, True), ("linear", "d", 4, 2))),
        ],
    ),
    "tokens": (
        (4, 4, 2),
        [
            ("a", (("conv", "a", 2, 3, 2, 2, 0), ("reshape", -1, 3))),
            ("b", (("residual", "b", 0.9, MIXED),)),
            ("c", POOLED),
        ],
    ),
    "attention": (
        (2, 2, 3),
        [
            ("a", (("reshape", 4, 3), ("linear", "a", 3, 6), ("put", (5, 6), np.s_[:, :4]))),
            ("b", (("positions", "p", 5, 6), ("residual", "b", 0.7, ATTENDED))),
            ("c", (("take", np.s_[:, 2]), ("linear", "c", 6, 2))),
        ],
    ),
    "shortcut": (
        (4, 4, 2),
        [
            ("a", (("residual", "a", 0.7, WIDENED, THINNED),)),
            ("b", (("act", "tanh"), ("reshape", -1), ("linear", "b", 24, 2))),
        ],
    ),
    "vgg": (
        (4, 4, 1),
        [
            ("a", STEM),
            ("b", (("act", "gelu"), ("maxpool", 2), ("conv", "b", 2, 2, 3, 1, 1))),
            ("c", (("act", "tanh"), ("reshape", -1), ("linear", "c", 8, 2))),
        ],
    ),
}


def tensors(net, seed=0):
    rng = np.random.default_rng(seed)
    w = {n: 0.5 * rng.standard_normal(s) + 0.8 * n.endswith("gain") for n, s in net.shapes.items()}
    return w | net.init_buffers()


def on(dev, arrays):
    return {n: dev.to_device(a) for n, a in arrays.items()}


def probes_of(dev, count=2):
    return lambda block, shape: [
        dev.to_device(sphere(np.random.default_rng([block, i]), shape)) for i in range(count)
    ]


@pytest.mark.parametrize("which", CHAINS)
def test_devices_agree(dev, host_dev, which):
    """Outputs, gradients, J and the gradient of the Jacobian loss: as on NumPy in float64."""
    shape, blocks = CHAINS[which]
    net = Chain(blocks)
    x, dz = np.random.default_rng(1).standard_normal((B, *shape)), None
    found = []
    for d in (host_dev, dev):
        w = on(d, tensors(net))
        g = {n: d.empty(s) for n, s in net.shapes.items()}
        y, tape = net.forward(d, w, d.to_device(x), TRAINING)
        dz = np.random.default_rng(2).standard_normal(y.shape)
        net.backward(d, d.to_device(dz), tape, g)
        second = {
            n: d.empty(s)
            for n, s in (net.shapes | net.buffers).items()
            if not n.endswith((".mean", ".var"))
        }
        loss, J = jacobian_loss(d, net, w, d.to_device(x), probes_of(d), second)
        everything = {
            "y": y,
            "loss": loss,
            "J": J,
            **g,
            **{"second " + n: a for n, a in second.items()},
        }
        assert all(a.dtype == d.dtype for a in everything.values())
        found.append({n: d.to_host(a) for n, a in everything.items()})
    tolerance = 1e-11 if dev.dtype == np.float64 else 2e-4
    for name, a in found[0].items():
        np.testing.assert_allclose(
            found[1][name],
            a,
            rtol=tolerance,
            atol=tolerance * max(1, np.abs(a).max()),
            err_msg=name,
        )


@pytest.mark.parametrize("which", CHAINS)
def test_stages_are_the_network(host_dev, which):
    """One after the other they give the outputs; each backward is the transpose of its tangent;
    running statistics rest."""
    shape, blocks = CHAINS[which]
    net, x = Chain(blocks), np.random.default_rng(1).standard_normal((B, *shape))
    w = tensors(net)
    before = {n: a.copy() for n, a in w.items()}
    y, x0 = net.forward(host_dev, {n: a.copy() for n, a in w.items()}, x, TRAINING)[0], x
    for stage, (name, _) in zip(net.stages(host_dev, w), blocks, strict=True):
        assert stage.name == name
        out, cache = stage.forward(x)
        rng = np.random.default_rng(3)
        v, d = rng.standard_normal(out.shape), rng.standard_normal(x.shape)
        moved = [stage.forward(x + t * d)[0] for t in (1e-5, -1e-5)]
        np.testing.assert_allclose(
            (v * (moved[0] - moved[1])).sum() / 2e-5,
            (stage.backward(v, cache) * d).sum(),
            rtol=1e-6,
        )
        x = out
    np.testing.assert_array_equal(x, y)
    assert all((w[n] == before[n]).all() for n in w)
    assert x0.shape[0] == B


def test_batchnorm_records_in_training_only(host_dev):
    shape, blocks = CHAINS["vgg"]
    net, w = Chain(blocks), tensors(Chain(blocks))
    x = np.random.default_rng(0).standard_normal((B, *shape))
    net.forward(host_dev, w, x)
    assert (w["n.mean"] == 0).all()
    assert (w["n.var"] == 1).all()
    assert net.batchnorm
    net.forward(host_dev, w, x, TRAINING)
    assert (w["n.mean"] != 0).all()
    assert (w["n.var"] != 1).all()


def test_shards_add_up(host_dev):
    shape, blocks = CHAINS["tokens"]
    net, x = Chain(blocks), np.random.default_rng(1).standard_normal((B, *shape))
    w = tensors(net)
    whole, parts = Arena(host_dev, net.shapes), Arena(host_dev, net.shapes)
    dz = np.random.default_rng(2).standard_normal((B, 2))
    net.backward(host_dev, dz, net.forward(host_dev, w, x, TRAINING)[1], whole.views)
    for i, part in enumerate((slice(0, 1), slice(1, B))):
        net.backward(
            host_dev,
            dz[part],
            net.forward(host_dev, w, x[part], TRAINING)[1],
            parts.views,
            accumulate=i > 0,
        )
    np.testing.assert_allclose(parts.flat, whole.flat, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("k", "stride", "pad", "size"),
    [(3, 1, 1, (5, 6)), (3, 2, 1, (7, 6)), (2, 2, 0, (5, 4)), (1, 1, 0, (3, 3))],
)
def test_convolution_is_the_sum(host_dev, monkeypatch, k, stride, pad, size):
    """Against the definition, also when few images fit the columns at once."""
    rng = np.random.default_rng(0)
    x, w, b = (
        rng.standard_normal((3, *size, 2)),
        rng.standard_normal((k, k, 2, 4)),
        rng.standard_normal(4),
    )
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    expected = np.empty((3, *((n + 2 * pad - k) // stride + 1 for n in size), 4))
    for i, j in np.ndindex(expected.shape[1:3]):
        patch = padded[:, i * stride : i * stride + k, j * stride : j * stride + k]
        expected[:, i, j] = np.einsum("bklc,klcn->bn", patch, w) + b
    dy = rng.standard_normal(expected.shape)
    results = []
    for limit in (1, 10**9):
        monkeypatch.setitem(conv.COLUMN_BYTES, "cpu", limit)
        y, cache = conv.conv_forward(host_dev, x, w, b, stride, pad)
        dw, db = np.full(w.shape, np.nan), np.full(4, np.nan)
        dx = conv.conv_backward(host_dev, dy, cache, dw, db)
        np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)
        results.append((dx, dw, db))
    for one, all_at_once in zip(*results, strict=True):
        np.testing.assert_allclose(one, all_at_once, rtol=1e-12, atol=1e-12)


def test_maximum_of_equal_pixels_goes_to_the_first(host_dev):
    y, cache = conv.maxpool_forward(host_dev, np.ones((1, 5, 4, 1)), 2)
    dx = conv.maxpool_backward(host_dev, np.ones_like(y), cache)
    assert y.shape == (1, 2, 2, 1)
    assert dx.sum() == 4
    assert (dx[0, :4:2, ::2, 0] == 1).all()


def test_unknown_operation_is_refused():
    with pytest.raises(InputError, match="unknown operation 'dense'"):
        Chain([("a", (("dense", "a", 2, 3),))])


# -- the same networks in PyTorch ------------------------------------------------------------------


def twin(torch, net, ops, w, x):
    """The operations of a chain by torch functions on torch tensors, channels last."""
    F = torch.nn.functional
    activations = {
        "relu": F.relu,
        "tanh": torch.tanh,
        "gelu": F.gelu,
        "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    }

    def image(f, x):
        return f(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    for kind, *rest in ops:
        name = rest[0] if rest else ""
        if kind == "linear":
            x = x @ w[f"{name}.weight"] + w.get(f"{name}.bias", 0)
        elif kind == "positions":
            x = x + w[f"{name}.shift"]
        elif kind == "attention":
            q, k, v = (
                part.unflatten(-1, (name, -1)).transpose(-2, -3) for part in x.chunk(3, dim=-1)
            )
            scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
            x = (scores.softmax(dim=-1) @ v).transpose(-2, -3).flatten(-2)
        elif kind == "take":
            x = x[name]
        elif kind == "put":
            y = torch.zeros(len(x), *name, dtype=x.dtype)
            y[rest[1]] = x
            x = y
        elif kind == "conv":
            kernel, bias, stride, pad = (
                w[f"{name}.weight"].permute(3, 2, 0, 1),
                w[f"{name}.bias"],
                *rest[4:],
            )
            x = image(lambda x, k=kernel, b=bias, s=stride, p=pad: F.conv2d(x, k, b, s, p), x)
        elif kind == "act":
            x = activations[name](x)
        elif kind == "layernorm":
            x = F.layer_norm(x, x.shape[-1:], w[f"{name}.gain"], w[f"{name}.shift"])
        elif kind == "batchnorm":
            rows = x.reshape(-1, x.shape[-1])
            x = F.batch_norm(rows, None, None, w[f"{name}.gain"], w[f"{name}.shift"], True).reshape(
                x.shape
            )
        elif kind == "scale":
            x = x * w[f"{name}.gain"] + (w[f"{name}.shift"] if rest[3] else 0)
        elif kind == "maxpool":
            x = image(lambda x, k=name: F.max_pool2d(x, k), x)
        elif kind == "avgpool":
            x = image(lambda x, size=tuple(rest): F.avg_pool2d(x, size), x)
        elif kind == "swap":
            x = x.transpose(1, 2)
        elif kind == "reshape":
            x = x.reshape(len(x), *rest)
        else:
            inner, way = [*rest[2:], ()][:2]
            around = twin(torch, net, way, w, x)
            x = twin(torch, net, inner, w, x) + w[f"{name}.mu"] * around
    return x


@pytest.mark.torch
@pytest.mark.parametrize("which", CHAINS)
def test_gradients_equal_autograd(host_dev, which):
    torch = pytest.importorskip("torch", reason="torch is not installed (the oracle extra)")
    shape, blocks = CHAINS[which]
    net, x = Chain(blocks), np.random.default_rng(1).standard_normal((B, *shape))
    w = tensors(net)
    t = {n: torch.tensor(a, requires_grad=n in net.shapes) for n, a in w.items()}
    z = torch.tensor(x)
    for _, ops in blocks:
        z = twin(torch, net, ops, t, z)
    dz = np.random.default_rng(2).standard_normal(z.shape)
    names = list(net.shapes)
    expected = torch.autograd.grad(z, [t[n] for n in names], torch.tensor(dz))
    y, tape = net.forward(host_dev, w, x, TRAINING)
    g = {n: np.full(net.shapes[n], np.nan) for n in names}
    net.backward(host_dev, dz, tape, g)
    np.testing.assert_allclose(y, z.detach(), rtol=1e-12, atol=1e-12)
    for name, e in zip(names, expected, strict=True):
        np.testing.assert_allclose(g[name], e, rtol=1e-11, atol=1e-12, err_msg=name)


@pytest.mark.torch
@pytest.mark.parametrize("loss", ["log", "square"])
@pytest.mark.parametrize("which", CHAINS)
def test_second_order_equals_double_backward(host_dev, which, loss):
    torch = pytest.importorskip("torch", reason="torch is not installed (the oracle extra)")
    shape, blocks = CHAINS[which]
    net, x = Chain(blocks), np.random.default_rng(1).standard_normal((B, *shape))
    w, probes = tensors(net), probes_of(host_dev)
    names = [n for n in w if not n.endswith((".mean", ".var"))]
    t = {n: torch.tensor(a, requires_grad=True) for n, a in w.items()}
    h, norms = torch.tensor(x, requires_grad=True), []
    for i, (_, ops) in enumerate(blocks):
        y = twin(torch, net, ops, t, h)
        draws = probes(i, tuple(y.shape))
        u = [torch.autograd.grad(y, h, torch.tensor(v), create_graph=True)[0] for v in draws]
        norms.append(sum((a * a).sum() for a in u) / (B * len(u)))
        h = y
    J = torch.stack(norms)
    value = 0.5 * (torch.log(J) ** 2).sum() if loss == "log" else 0.5 * ((J - 1) ** 2).sum()
    expected = torch.autograd.grad(value, [t[n] for n in names], allow_unused=True)
    g = {n: np.full(w[n].shape, np.nan) for n in names}
    ours, ourJ = jacobian_loss(host_dev, net, w, x, probes, g, loss)
    np.testing.assert_allclose(ours, value.item(), rtol=1e-12)
    np.testing.assert_allclose(ourJ, J.detach(), rtol=1e-12)
    for name, e in zip(names, expected, strict=True):
        e = np.zeros(w[name].shape) if e is None else e.numpy()
        np.testing.assert_allclose(
            g[name], e, rtol=1e-9, atol=1e-11 * max(1, np.abs(e).max()), err_msg=name
        )


# -- rules that are wrong on purpose ---------------------------------------------------------------


def _scaled(which):
    """The rule with one of its two results one per cent off."""
    return lambda right, *a, **k: tuple(
        1.01 * x if i == which else x for i, x in enumerate(right(*a, **k))
    )


def _forgets_tangent_weight(right, dev, dy, cache, dw, db=None, **k):
    """<lam, dydot/da> left out: only the sweep without a shift brings it."""
    return right(dev, dy, cache, None if db is None else dw, db, **k)


def _shifts_tangent(right, dev, x, w, b, *settings):
    return right(dev, x, w, np.full(w.shape[-1], 0.3) if b is None else b, *settings)


def _forgets_curvature(right, dev, xbar, lam, cache, xdot):
    return right(dev, xbar, 0 * lam, cache, xdot)[0], right(dev, xbar, lam, cache, xdot)[1]


def _forgets_projection(right, dev, xbar, lam, cache, tangent, *g):
    xhatdot, q, axis = tangent
    return right(dev, xbar, lam, cache, (xhatdot, 0 * q, axis), *g)


def _forgets_softmax(right, dev, xbar, lam, cache, tangent):
    """The change of A along xdot left out."""
    xdot, c = tangent
    return right(dev, xbar, lam, cache, (xdot, 0 * c))


WRONG = [
    (k, f, _scaled(i))
    for k in ("act", "layernorm", "batchnorm", "attention")
    for f, i in (("pair", 0), ("pair", 1), ("tangent", 0))
]
WRONG += [
    ("maxpool", "tangent", _scaled(0)),
    ("act", "pair", _forgets_curvature),
    ("attention", "pair", _forgets_softmax),
    ("layernorm", "pair", _forgets_projection),
]
WRONG += [
    ("batchnorm", "pair", _forgets_projection),
    *((k, "forward", _shifts_tangent) for k in ("linear", "conv")),
]
WRONG += [(k, "backward", _forgets_tangent_weight) for k in ("linear", "conv", "scale")]
WRONG += [(k, "backward", lambda right, *a, **o: 1.01 * right(*a, **o)) for k in ("take", "put")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "which", "wrong"), WRONG, ids=[f"{k} {f} {i}" for i, (k, f, _) in enumerate(WRONG)]
)
def test_wrong_rule_is_caught(monkeypatch, kind, which, wrong):
    right = getattr(RULES[kind], which)
    monkeypatch.setitem(
        RULES, kind, RULES[kind]._replace(**{which: lambda *a, **k: wrong(right, *a, **k)})
    )
    cases = [build(name) for name, build in BUILDERS.items() if name.startswith("pair")]
    assert any(not r.passed for case in cases for r in audit(case))
