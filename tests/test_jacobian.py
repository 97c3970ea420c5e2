"""Jacobian norms of finite networks: estimator against exact Jacobians, closed formulas, variance,
theory, and models."""

import math
from typing import NamedTuple

import numpy as np
import pytest

from tinygrok.audit.case import cpu_device
from tinygrok.criticality.jacobian import Propagation, mean_and_error
from tinygrok.criticality.meanfield import MeanField, averages
from tinygrok.models.chain import Chain
from tinygrok.models.gpt import GPT, Tokens
from tinygrok.models.mlp import TwoLayerNet
from tinygrok.models.protocol import TRAINING
from tinygrok.models.vision import mixer
from tinygrok.ops.activation import activation_backward, activation_forward
from tinygrok.ops.embedding import RowIndex
from tinygrok.ops.linear import linear_backward, linear_forward
from tinygrok.ops.norm import (
    batchnorm_backward,
    batchnorm_forward,
    layernorm_backward,
    layernorm_forward,
)


class Stage(NamedTuple):
    name: str
    forward: object
    backward: object


def block(dev, W, b, kind, norm="none", mu=0.0):
    """h -> W phi(h) + b + mu h with a norm, written from the operations."""
    n = W.shape[0]
    one, nought = dev.to_device(np.ones(n)), dev.to_device(np.zeros(n))
    waste = [dev.empty((n,)), dev.empty((n,))]
    W, b = dev.to_device(W), dev.to_device(b)

    def normalise(x):
        if norm == "batch":
            return batchnorm_forward(dev, x, one, nought, nought.copy(), one.copy(), eps=0.0)
        return layernorm_forward(dev, x, one, nought, eps=0.0)

    def denormalise(dy, cache):
        return (batchnorm_backward if norm == "batch" else layernorm_backward)(
            dev, dy, cache, *waste
        )

    def forward(x):
        y, caches = x, {}
        if norm in ("pre", "batch"):
            y, caches["norm"] = normalise(y)
        y, caches["act"] = activation_forward(dev, y, kind)
        if norm == "act":
            y, caches["norm"] = normalise(y)
        y, caches["linear"] = linear_forward(dev, y, W, b)
        y = y + mu * x if mu else y
        if norm == "post":
            y, caches["norm"] = normalise(y)
        return y, caches

    def backward(dy, caches):
        dy = denormalise(dy, caches["norm"]) if norm == "post" else dy
        dx = linear_backward(dev, dy, caches["linear"])
        dx = denormalise(dx, caches["norm"]) if norm == "act" else dx
        dx = activation_backward(dev, dx, caches["act"])
        dx = denormalise(dx, caches["norm"]) if norm in ("pre", "batch") else dx
        return dx + mu * dy if mu else dx

    return Stage("block", forward, backward)


def network(dev, rng, widths, kind, sw2=1.7, sb2=0.3, norm="none", mu=0.0):
    return [
        block(
            dev,
            rng.normal(0, math.sqrt(sw2 / n), (n, m)),
            rng.normal(0, math.sqrt(sb2), m),
            kind,
            norm,
            mu,
        )
        for n, m in zip(widths[:-1], widths[1:], strict=True)
    ]


@pytest.mark.parametrize("norm", ["none", "pre", "act", "post", "batch"])
def test_exact_jacobian_is_the_derivative(host_dev, norm):
    rng = np.random.default_rng(0)
    stages = network(host_dev, rng, (6, 6, 6), "tanh", norm=norm, mu=0.5)
    x = rng.standard_normal((3, 6))
    J = jacobian(Propagation(host_dev, stages, x), 0, 2)
    assert J.shape == (18, 18)
    h = 1e-6
    for i in range(18):
        ends = []
        for sign in (1, -1):
            moved = x.copy()
            moved.flat[i] += sign * h
            for stage in stages:
                moved, _ = stage.forward(moved)
            ends.append(moved.ravel())
        np.testing.assert_allclose(J[:, i], (ends[0] - ends[1]) / (2 * h), rtol=1e-6, atol=1e-8)
    if norm != "batch":  # samples do not see each other
        assert not np.delete(
            J.reshape(3, 6, 3, 6).swapaxes(1, 2).reshape(9, 36), [0, 4, 8], axis=0
        ).any()
    else:
        assert np.abs(J[:6, 6:12]).max() > 1e-3


def closed_form(case, h, W, mu):
    """APJN of one block in closed form, W here (out, in)."""
    N_out, N = W.shape
    c = (W * W).sum(axis=0)
    if case == "none":
        d = 1 - np.tanh(h) ** 2
        J = (c * d * d).sum(axis=1) / N_out
        return (J + mu**2 + 2 * mu / N * (np.diag(W) * d).sum(axis=1)).mean() if mu else J.mean()
    if case == "batch":
        B = len(h)
        s = h.std(axis=0)
        xhat = (h - h.mean(axis=0)) / s
        d = 1 - np.tanh(xhat) ** 2
        return (c / s**2 * (d * d * (1 - 1 / B - xhat * xhat / B)).sum(axis=0)).sum() / (B * N_out)
    total = 0.0
    for row in h:
        z = row if case == "pre" else np.tanh(row)
        s = z.std()
        xhat = (z - z.mean()) / s
        if case == "pre":
            d = 1 - np.tanh(xhat) ** 2
            total += (
                (c * d * d).sum() - ((W @ d) ** 2).sum() / N - ((W @ (d * xhat)) ** 2).sum() / N
            ) / (N_out * s * s)
        else:
            WP = W - W.mean(axis=1, keepdims=True) - np.outer(W @ xhat, xhat) / N
            total += ((1 - np.tanh(row) ** 2) ** 2 * (WP * WP).sum(axis=0)).sum() / (N_out * s * s)
    return total / len(h)


@pytest.mark.parametrize(
    ("norm", "mu"), [("none", 0), ("none", 0.7), ("pre", 0), ("act", 0), ("batch", 0)]
)
def test_one_block_against_closed_formulas(host_dev, norm, mu):
    rng = np.random.default_rng(1)
    sizes = (7, 7) if mu else (7, 5)
    W, h = rng.standard_normal(sizes[::-1]), rng.standard_normal((4, 7))
    stage = block(host_dev, W.T, np.zeros(sizes[1]), "tanh", norm, mu)
    assert exact(Propagation(host_dev, [stage], h), 0, 1) == pytest.approx(
        closed_form(norm, h, W, mu), rel=1e-12
    )


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["none", "pre", "batch"])
def test_estimates_are_unbiased(norm, dev):
    """Every J^{l0,L} of one backward pass, and every chi, within four standard errors of the exact
    Jacobian."""
    rng = np.random.default_rng(2)
    stages = network(dev, rng, (8, 10, 6, 9), "gelu", norm=norm)
    run = Propagation(dev, stages, dev.to_device(rng.standard_normal((3, 8))))
    mean, error = mean_and_error(run.apjn(rng, 200))
    expected = [exact(run, start, 3) for start in range(4)]
    assert mean.shape == (4,)
    assert mean[3] == expected[3] == 1
    assert (abs(mean - expected) <= 4 * error + 1e-6).all()
    assert (error[:3] < 0.3 * mean[:3]).all()
    mean, error = mean_and_error(run.chi(rng, 200))
    assert (abs(mean - [exact(run, k, k + 1) for k in range(3)]) <= 4 * error).all()
    mean, error = mean_and_error(run.apjn(rng, 200, stop=2, start=1))
    assert mean.shape == (2,)
    assert abs(mean[0] - exact(run, 1, 2)) <= 4 * error[0]


def test_variance_of_a_probe(host_dev):
    """(2/(N+2)) (m2 - m1^2) with m1 = tr A/N, m2 = tr A^2/N, A = J J^T"""
    rng, N = np.random.default_rng(3), 40
    stages = network(host_dev, rng, (N,) * 4, "relu", 2.0, 0.0)
    run = Propagation(host_dev, stages, rng.standard_normal((1, N)))
    A = jacobian(run, 0, 3)
    A = A @ A.T
    m1, m2 = np.trace(A) / N, np.trace(A @ A) / N
    samples = run.apjn(rng, 4000)[:, 0]
    assert samples.var() == pytest.approx(2 / (N + 2) * (m2 - m1**2), rel=0.12)
    assert samples.mean() == pytest.approx(m1, abs=4 * samples.std() / 4000**0.5)


def test_exploding_jacobians_stay_finite():
    dev, rng = cpu_device("float32"), np.random.default_rng(4)
    stages = network(dev, rng, (20,) * 121, "identity", 4.0, 0.0)
    run = Propagation(dev, stages, dev.to_device(1e-19 * rng.standard_normal((1, 20))))
    J = run.apjn(rng)[0, 0]
    assert 1e50 < J < 1e90  # 4^120 = 1e72, more than float32 can hold


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "sw2", "sb2", "norm", "mu"),
    [
        ("relu", 2.0, 0.0, "none", 0.0),
        ("erf", math.pi / 4, 0.0, "none", 0.0),
        ("tanh", 2.5, 0.05, "none", 0.0),
        ("leaky_relu", 1.5, 0.3, "none", 0.8),
        ("gelu", 1.0, 0.03, "pre", 1.0),
        ("relu", 1.0, 0.1, "act", 0.0),
        ("relu", 1.44, 0.09, "post", 1.0),
        ("relu", 1.0, 0.0, "batch", 0.5),
    ],
)
def test_wide_networks_follow_the_theory(host_dev, kind, sw2, sb2, norm, mu):
    """K, chi and J of networks of width 256 against the recursion from the measured K^1."""
    rng, N, L = np.random.default_rng(5), 256, 6
    found = []
    for _ in range(6):
        x = rng.standard_normal((256 if norm == "batch" else 8, N))
        run = Propagation(
            host_dev, network(host_dev, rng, (N,) * (L + 1), kind, sw2, sb2, norm, mu), x
        )
        found.append(
            np.concatenate(
                [run.kernels, run.chi(rng, 4).mean(axis=0), run.apjn(rng, 8).mean(axis=0)[:-1]]
            )
        )
    mean, error = mean_and_error(found)
    K, chi = MeanField(kind, sw2, sb2, mu, norm).propagate(1.0, L)
    if (
        norm == "batch"
    ):  # K is the variance over the batch there: the kernel also holds what all samples share
        mean, error = mean[L + 1 :], error[L + 1 :]
    theory = np.concatenate([K if norm != "batch" else K[:0], chi, np.cumprod(chi[::-1])[::-1]])
    finite = 0.06 if norm == "batch" else 0.02  # of width and batch
    assert (abs(mean - theory) <= 4 * error + finite * theory).all(), np.stack(
        [mean, theory, error]
    )


def test_batchnorm_of_small_batches_is_more_chaotic(host_dev):
    """chi in the steady state: 1.608 at B = 8, 1.476 at 128 (limit pi/(pi - 1) = 1.4669)."""
    rng = np.random.default_rng(6)
    for B, expected, tol in ((8, 1.608, 0.1), (128, 1.476, 0.05)):
        chi = []
        for _ in range(3):
            stages = network(host_dev, rng, (128,) * 13, "relu", 1.0, 0.0, "batch")
            chi.append(
                Propagation(host_dev, stages, rng.standard_normal((B, 128)))
                .chi(rng, 2)[:, 6:]
                .mean()
            )
        assert np.mean(chi) == pytest.approx(expected, abs=tol), B


# -- models of the library -------------------------------------------------------------------------


def jacobian(run, start, stop):
    """dh^stop/dh^start of a Propagation, (B N_stop, B N_start): one backward pass a row."""
    rows = []
    for unit in np.eye(math.prod(run.shapes[stop])):
        u = run.dev.to_device(unit.reshape(run.shapes[stop]))
        for k in range(stop - 1, start - 1, -1):
            u = run.stages[k].backward(u, run.caches[k])
        rows.append(run.dev.to_host(u).reshape(-1))
    return np.stack(rows)


def exact(run, start, stop):
    """J^{start,stop} of this network and batch, from its exact Jacobian."""
    J = jacobian(run, start, stop)
    return float((J * J).sum()) / len(J)


def by_differences(stages, x, h=1e-5):
    """The Jacobian of all stages by central differences, (outputs, inputs)."""

    def run(x):
        for stage in stages:
            x = stage.forward(x)[0]
        return x.ravel()

    columns = []
    for i in range(x.size):
        step = np.zeros(x.shape)
        step.flat[i] = h
        columns.append((run(x + step) - run(x - step)) / (2 * h))
    return np.stack(columns, axis=1)


@pytest.mark.parametrize(
    "options", [{}, {"positions": "learned", "bias": True, "shift": False}], ids=str
)
def test_gpt_blocks(host_dev, options):
    """Stages are the blocks that forward runs, their backward is the Jacobian, and nothing else is
    touched."""
    rng = np.random.default_rng(7)
    net = GPT(5, 8, 2, 2, 6, activation="gelu", **options)
    w = net.init(rng, 0.5)
    before = {k: v.copy() for k, v in w.items()}
    tokens = Tokens(host_dev, rng.integers(0, 5, (2, 3)), 5)
    _, tape = net.forward(host_dev, w, tokens, record=True)
    x = tape["blocks.0.in"].reshape(2, 3, 8)
    run = Propagation(host_dev, net.stages(host_dev, w), x)
    end = x
    for stage in run.stages:
        end = stage.forward(end)[0]
    np.testing.assert_array_equal(end.reshape(6, 8), tape["blocks.1.end"])
    np.testing.assert_allclose(
        jacobian(run, 0, 2), by_differences(run.stages, x), rtol=1e-6, atol=1e-8
    )
    np.testing.assert_array_equal(jacobian(run, 0, 2), jacobian(run, 0, 2))
    assert all(np.array_equal(w[k], before[k]) for k in w)
    assert (run.kernels[0], run.kernels[2]) == pytest.approx(((x * x).mean(), (end * end).mean()))
    mean, error = mean_and_error(run.apjn(rng, 300))
    assert (abs(mean - [exact(run, 0, 2), exact(run, 1, 2), 1]) <= 4 * error + 1e-12).all()


@pytest.mark.parametrize("batchnorm", [False, True])
@pytest.mark.parametrize("activation", ["square", "power3", "gelu"])
def test_two_layer_net(host_dev, activation, batchnorm):
    rng = np.random.default_rng(8)
    net = TwoLayerNet(5, 6, activation=activation, batchnorm=batchnorm)
    w = net.init(rng, 0.7) | net.init_buffers()
    rows = RowIndex(host_dev, rng.integers(0, 5, (2, 4)), 5)
    logits, tape = net.forward(host_dev, {k: v.copy() for k, v in w.items()}, rows, TRAINING)
    run = Propagation(host_dev, net.stages(host_dev, w), tape["hidden.pre"])
    np.testing.assert_allclose(run.stages[0].forward(tape["hidden.pre"])[0], logits, rtol=1e-13)
    np.testing.assert_allclose(
        jacobian(run, 0, 1), by_differences(run.stages, tape["hidden.pre"]), rtol=1e-5, atol=1e-7
    )
    if batchnorm:
        assert not w["norm.mean"].any()  # the weights that were given stay as they are
    if activation == "square" and not batchnorm:  # dz/dh = 2 h W
        h, W = tape["hidden.pre"], w["W"]
        assert exact(run, 0, 1) == pytest.approx(
            np.mean([((2 * row[:, None] * W) ** 2).sum() for row in h]) / 5, rel=1e-12
        )


@pytest.mark.slow
def test_models_on_devices(dev):
    """Estimates on every device, of a GPT, a two-layer net and a convolutional chain, agree with
    the exact Jacobian."""
    rng = np.random.default_rng(9)
    gpt, net = (
        GPT(5, 8, 1, 2, 6, activation="gelu"),
        TwoLayerNet(5, 6, activation="gelu", batchnorm=True),
    )
    conv = Chain([("conv", (("conv", "c", 2, 3, 3, 1, 1), ("act", "tanh"), ("maxpool", 2)))])
    for model, weights, shape in (
        (gpt, gpt.init(rng, 0.5), (2, 3, 8)),
        (net, net.init(rng, 0.7) | net.init_buffers(), (4, 6)),
        (conv, conv.init(rng) | conv.init_buffers(), (2, 4, 4, 2)),
    ):
        stages = model.stages(dev, {k: dev.to_device(v) for k, v in weights.items()})
        run = Propagation(dev, stages, dev.to_device(rng.standard_normal(shape)))
        mean, error = mean_and_error(run.apjn(rng, 100)[:, 0])
        assert abs(mean - exact(run, 0, 1)) <= 4 * error


def gelu_product(K, c):
    """<phi(u) phi(v)> of u and v of variance K and covariance c, by a plain sum; phi = GELU."""
    x = np.linspace(-9, 9, 301)
    w = np.exp(-x * x / 2)
    phi = np.vectorize(lambda z: z * (1 + math.erf(z / math.sqrt(2))) / 2)
    u = math.sqrt(K) * x
    v = (c * x[:, None] + math.sqrt(K * K - c * c) * x) / math.sqrt(K)
    return w * phi(u) @ phi(v) @ w / w.sum() ** 2


def test_mixer_follows_its_recursion():
    """Mixer at mu = 1 (LayerNorm, two linear layers a half): S the variance over channels, kap =
    sw2 + sb2,

    chi = 1 + sw2^2 D(kap)/S in both halves; S grows by sw2 (V(kap) - C(kap, sb2)) in the token
    half, whose part common to all channels LayerNorm takes out, and by sw2 V(kap) + sb2 in the
    channel half"""
    dev, rng, sw2, sb2, depth = cpu_device("float32"), np.random.default_rng(10), 2.0, 0.2, 8
    model = mixer((32, 32, 3), 10, 4, 128, depth, (256, 256), "gelu", 1.0)
    w = model.init(rng, sw2**0.5, sb2**0.5, first=1.0) | model.init_buffers()
    stages = model.stages(dev, {name: dev.to_device(a) for name, a in w.items()})[: 2 * depth + 1]
    measured = (
        Propagation(dev, stages, dev.to_device(rng.standard_normal((2, 32, 32, 3))))
        .chi(rng, 4)
        .mean(axis=0)[1:]
    )
    kap, S, theory = sw2 + sb2, 1.0, []
    V, D, _ = averages("gelu")(kap)
    C = gelu_product(kap, sb2)
    for half in range(2 * depth):
        theory.append(1 + sw2**2 * D / S)
        S += sw2 * V + sb2 if half % 2 else sw2 * (V - C)
    np.testing.assert_allclose(measured[2:], theory[2:], rtol=0.04)
