"""Jacobian norms of finite networks: estimator against exact Jacobians, closed formulas, variance, theory, and models."""

import math
from typing import NamedTuple

import numpy as np
import pytest

from tinygrok.criticality.jacobian import Propagation, mean_and_error
from tinygrok.criticality.meanfield import MeanField
from tinygrok.ops.activation import activation_backward, activation_forward
from tinygrok.ops.linear import linear_backward, linear_forward
from tinygrok.ops.norm import batchnorm_backward, batchnorm_forward, layernorm_backward, layernorm_forward


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
        if norm == "batchnorm":
            return batchnorm_forward(dev, x, one, nought, nought.copy(), one.copy(), eps=0.0)
        return layernorm_forward(dev, x, one, nought, eps=0.0)

    def denormalise(dy, cache):
        return (batchnorm_backward if norm == "batchnorm" else layernorm_backward)(dev, dy, cache, *waste)

    def forward(x):
        y, caches = x, {}
        if norm in ("layernorm", "batchnorm"):
            y, caches["norm"] = normalise(y)
        y, caches["act"] = activation_forward(dev, y, kind)
        if norm == "layernorm_activations":
            y, caches["norm"] = normalise(y)
        y, caches["linear"] = linear_forward(dev, y, W, b)
        y = y + mu * x if mu else y
        if norm == "post_layernorm":
            y, caches["norm"] = normalise(y)
        return y, caches

    def backward(dy, caches):
        dy = denormalise(dy, caches["norm"]) if norm == "post_layernorm" else dy
        dx = linear_backward(dev, dy, caches["linear"])
        dx = denormalise(dx, caches["norm"]) if norm == "layernorm_activations" else dx
        dx = activation_backward(dev, dx, caches["act"])
        dx = denormalise(dx, caches["norm"]) if norm in ("layernorm", "batchnorm") else dx
        return dx + mu * dy if mu else dx

    return Stage("block", forward, backward)


def network(dev, rng, widths, kind, sw2=1.7, sb2=0.3, norm="none", mu=0.0):
    return [
        block(dev, rng.normal(0, math.sqrt(sw2 / n), (n, m)), rng.normal(0, math.sqrt(sb2), m), kind, norm, mu)
        for n, m in zip(widths[:-1], widths[1:], strict=True)
    ]


@pytest.mark.parametrize("norm", ["none", "layernorm", "layernorm_activations", "post_layernorm", "batchnorm"])
def test_exact_jacobian_is_the_derivative(host_dev, norm):
    rng = np.random.default_rng(0)
    stages = network(host_dev, rng, (6, 6, 6), "tanh", norm=norm, mu=0.5)
    x = rng.standard_normal((3, 6))
    J = Propagation(host_dev, stages, x).jacobian(0, 2)
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
    if norm != "batchnorm":  # samples do not see each other
        assert not np.delete(J.reshape(3, 6, 3, 6).swapaxes(1, 2).reshape(9, 36), [0, 4, 8], axis=0).any()
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
    if case == "batchnorm":
        B = len(h)
        s = h.std(axis=0)
        xhat = (h - h.mean(axis=0)) / s
        d = 1 - np.tanh(xhat) ** 2
        return (c / s**2 * (d * d * (1 - 1 / B - xhat * xhat / B)).sum(axis=0)).sum() / (B * N_out)
    total = 0.0
    for row in h:
        z = row if case == "layernorm" else np.tanh(row)
        s = z.std()
        xhat = (z - z.mean()) / s
        if case == "layernorm":
            d = 1 - np.tanh(xhat) ** 2
            total += ((c * d * d).sum() - ((W @ d) ** 2).sum() / N - ((W @ (d * xhat)) ** 2).sum() / N) / (N_out * s * s)
        else:
            WP = W - W.mean(axis=1, keepdims=True) - np.outer(W @ xhat, xhat) / N
            total += ((1 - np.tanh(row) ** 2) ** 2 * (WP * WP).sum(axis=0)).sum() / (N_out * s * s)
    return total / len(h)


@pytest.mark.parametrize(
    "norm, mu", [("none", 0), ("none", 0.7), ("layernorm", 0), ("layernorm_activations", 0), ("batchnorm", 0)]
)
def test_one_block_against_closed_formulas(host_dev, norm, mu):
    rng = np.random.default_rng(1)
    sizes = (7, 7) if mu else (7, 5)
    W, h = rng.standard_normal(sizes[::-1]), rng.standard_normal((4, 7))
    stage = block(host_dev, W.T, np.zeros(sizes[1]), "tanh", norm, mu)
    assert Propagation(host_dev, [stage], h).exact(0, 1) == pytest.approx(closed_form(norm, h, W, mu), rel=1e-12)


@pytest.mark.parametrize("norm", ["none", "layernorm", "batchnorm"])
def test_estimates_are_unbiased(norm, dev):
    """Every J^{l0,L} of one backward pass, and every chi, within four standard errors of the exact Jacobian."""
    rng = np.random.default_rng(2)
    stages = network(dev, rng, (8, 10, 6, 9), "gelu", norm=norm)
    run = Propagation(dev, stages, dev.to_device(rng.standard_normal((3, 8))))
    mean, error = mean_and_error(run.apjn(rng, 400))
    exact = [run.exact(start, 3) for start in range(4)]
    assert mean.shape == (4,) and mean[3] == exact[3] == 1
    assert (abs(mean - exact) <= 4 * error + 1e-6).all() and (error[:3] < 0.2 * mean[:3]).all()
    mean, error = mean_and_error(run.chi(rng, 400))
    assert (abs(mean - [run.exact(k, k + 1) for k in range(3)]) <= 4 * error).all()
    mean, error = mean_and_error(run.apjn(rng, 400, stop=2, start=1))
    assert mean.shape == (2,) and abs(mean[0] - run.exact(1, 2)) <= 4 * error[0]


def test_variance_of_a_probe(host_dev):
    """(2/(N+2)) (m2 - m1^2) with m1 = tr A/N, m2 = tr A^2/N, A = J J^T"""
    rng, N = np.random.default_rng(3), 40
    stages = network(host_dev, rng, (N,) * 4, "relu", 2.0, 0.0)
    run = Propagation(host_dev, stages, rng.standard_normal((1, N)))
    A = run.jacobian(0, 3)
    A = A @ A.T
    m1, m2 = np.trace(A) / N, np.trace(A @ A) / N
    samples = run.apjn(rng, 4000)[:, 0]
    assert samples.var() == pytest.approx(2 / (N + 2) * (m2 - m1**2), rel=0.12)
    assert samples.mean() == pytest.approx(m1, abs=4 * samples.std() / 4000**0.5)


def test_exploding_jacobians_stay_finite():
    from tinygrok.engine.device import Device

    dev, rng = Device("cpu", np, "float32"), np.random.default_rng(4)
    stages = network(dev, rng, (20,) * 121, "identity", 4.0, 0.0)
    run = Propagation(dev, stages, dev.to_device(1e-19 * rng.standard_normal((1, 20))))
    J = run.apjn(rng)[0, 0]
    assert 1e50 < J < 1e90  # 4^120 = 1e72, more than float32 can hold


@pytest.mark.parametrize(
    "kind, sw2, sb2, norm, mu",
    [
        ("relu", 2.0, 0.0, "none", 0.0),
        ("erf", math.pi / 4, 0.0, "none", 0.0),
        ("tanh", 2.5, 0.05, "none", 0.0),
        ("leaky_relu", 1.5, 0.3, "none", 0.8),
        ("gelu", 1.0, 0.03, "layernorm", 1.0),
        ("relu", 1.0, 0.1, "layernorm_activations", 0.0),
        ("relu", 1.44, 0.09, "post_layernorm", 1.0),
        ("relu", 1.0, 0.0, "batchnorm", 0.5),
    ],
)
def test_wide_networks_follow_the_theory(host_dev, kind, sw2, sb2, norm, mu):
    """K, chi and J of networks of width 256 against the recursion from the measured K^1."""
    rng, N, L = np.random.default_rng(5), 256, 6
    found = []
    for _ in range(6):
        x = rng.standard_normal((256 if norm == "batchnorm" else 8, N))
        run = Propagation(host_dev, network(host_dev, rng, (N,) * (L + 1), kind, sw2, sb2, norm, mu), x)
        found.append(np.concatenate([run.kernels, run.chi(rng, 4).mean(axis=0), run.apjn(rng, 8).mean(axis=0)[:-1]]))
    mean, error = mean_and_error(found)
    K, chi = MeanField(kind, sw2, sb2, mu, norm).propagate(1.0, L)
    if norm == "batchnorm":  # K is the variance over the batch there: the kernel also holds what all samples share
        mean, error = mean[L + 1 :], error[L + 1 :]
    theory = np.concatenate([K if norm != "batchnorm" else K[:0], chi, np.cumprod(chi[::-1])[::-1]])
    finite = 0.06 if norm == "batchnorm" else 0.02  # of width and batch
    assert (abs(mean - theory) <= 4 * error + finite * theory).all(), np.stack([mean, theory, error])


def test_batchnorm_of_small_batches_is_more_chaotic(host_dev):
    """chi in the steady state: 1.608 at B = 8, 1.476 at 128 (limit pi/(pi - 1) = 1.4669)."""
    rng = np.random.default_rng(6)
    for B, expected, tol in ((8, 1.608, 0.1), (128, 1.476, 0.05)):
        chi = []
        for _ in range(3):
            stages = network(host_dev, rng, (128,) * 13, "relu", 1.0, 0.0, "batchnorm")
            chi.append(Propagation(host_dev, stages, rng.standard_normal((B, 128))).chi(rng, 2)[:, 6:].mean())
        assert np.mean(chi) == pytest.approx(expected, abs=tol), B
