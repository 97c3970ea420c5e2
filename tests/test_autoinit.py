"""AutoInit: deterministic vectors, gradients by differences, the dynamics of ReLU layers, and
tuning from bad starts."""

import math

import numpy as np
import pytest
from _autoinit_theory import relu_dynamics, relu_one_step
from test_chain import on

from tinygrok.criticality.autoinit import autoinit, jacobian_loss, sphere
from tinygrok.engine.device import Device
from tinygrok.engine.errors import InputError
from tinygrok.engine.optim import cosine
from tinygrok.models import vision
from tinygrok.models.chain import Chain

# -- the library ---------------------------------------------------------------------------------

# Widths 3-4-4-2, blocks linear, [LN] phi linear, [LN] phi linear; everything given by cosines, so
# that anyone can recompute it: exact J or one probe, activation, LayerNorm, loss, J, gradients by
# a_W = (.9, 1.1, 1.2) and a_b = (1, .5, 2)
VECTORS = [
    (
        False,
        "tanh",
        False,
        2.3364283923,
        (1.2495837673, 0.1659551905, 3.2613552763),
        (5.442608682, -4.3030623703, 1.9702380632),
        (-0.2216891174, -0.1164841039, 0),
    ),
    (
        False,
        "relu",
        False,
        0.1062206156,
        (1.2495837673, 1.4147220518, 1.2287476703),
        (0.4951344659, 0.6307874218, 0.3433258275),
        (0, 0, 0),
    ),
    (
        False,
        "gelu",
        True,
        3.2168466940,
        (1.2495837673, 1.1854680137, 12.4401951327),
        (2.0742161024, -3.1318812862, 4.2015546218),
        (-1.7615215797, -2.5104548498, 0),
    ),
    (
        True,
        "tanh",
        False,
        0.2493529422,
        (1.3579955264, 0.8506530509, 1.8506723277),
        (0.761664477, -0.8581211863, 1.0259149891),
        (-0.1186084444, -0.0612282347, 0),
    ),
    (
        True,
        "relu",
        False,
        0.3597722321,
        (1.3579955264, 2.0821376932, 0.7432629018),
        (0.6800216331, 1.333445642, -0.4945090977),
        (0, 0, 0),
    ),
    (
        True,
        "gelu",
        True,
        3.0918058390,
        (1.3579955264, 4.6431951501, 6.9030960753),
        (-1.0893478308, 0.0950109232, 3.2199500292),
        (-1.4783166019, -1.79345124, 0),
    ),
]
WIDTHS, A_W, A_B = (3, 4, 4, 2), (0.9, 1.1, 1.2), (1.0, 0.5, 2.0)


@pytest.mark.parametrize(("exact", "kind", "norm", "loss", "J", "by_weight", "by_bias"), VECTORS)
def test_vectors_without_random_numbers(dev, exact, kind, norm, loss, J, by_weight, by_bias):
    blocks = [("0", (("linear", "0", 3, 4),))]
    for k in (1, 2):
        before = (("layernorm", f"norm{k}", 4),) if norm else ()
        blocks.append((str(k), (*before, ("act", kind), ("linear", str(k), 4, WIDTHS[k + 1]))))
    net = Chain(blocks)
    w = net.init(np.random.default_rng(0))  # gains 1, shifts 0
    for k in range(3):
        i, j = np.arange(WIDTHS[k + 1]), np.arange(WIDTHS[k])[:, None]
        w[f"{k}.weight"], w[f"{k}.bias"] = (
            A_W[k] * np.sin(1 + 3 * i + 5 * j + 7 * k),
            A_B[k] * 0.1 * np.cos(i + k),
        )

    def probes(k, shape):
        if exact:
            return [dev.to_device(np.tile(e, (2, 1))) for e in np.eye(shape[1])]
        v = np.cos(1 + np.arange(2)[:, None] + 2 * np.arange(shape[1]) + k)
        return [dev.to_device(v / np.linalg.norm(v, axis=1, keepdims=True))]

    x = dev.to_device(np.cos(np.arange(2)[:, None] + 2 * np.arange(3)))
    g = {n: dev.empty(s) for n, s in net.shapes.items()}
    measured = jacobian_loss(dev, net, on(dev, w), x, probes, g)
    tolerance = 1e-9 if dev.dtype == np.float64 else 3e-5
    np.testing.assert_allclose(dev.to_host(measured[0]), loss, rtol=tolerance)
    np.testing.assert_allclose(dev.to_host(measured[1]), J, rtol=tolerance)
    for which, a, expected in (("weight", A_W, by_weight), ("bias", A_B, by_bias)):
        slopes = [
            (dev.to_host(g[f"{k}.{which}"]) * w[f"{k}.{which}"]).sum() / a[k] for k in range(3)
        ]
        np.testing.assert_allclose(slopes, expected, rtol=tolerance, atol=10 * tolerance)


MODELS = {
    "mlp": lambda act: vision.deep_mlp(64, 6, 3, 4, act),
    "mlp pre": lambda act: vision.deep_mlp(64, 6, 3, 4, act, "pre", 0.9),
    "mlp act": lambda act: vision.deep_mlp(64, 6, 3, 4, act, "act"),
    "mlp batch": lambda act: vision.deep_mlp(64, 6, 3, 4, act, "batch", 0.5),
    "mlp post": lambda act: vision.deep_mlp(64, 6, 3, 4, act, "post", 1.0),
    "resmlp": lambda act: vision.resmlp((8, 8, 1), 4, 4, 5, 2, 7, 0.5, act),
    "mixer": lambda act: vision.mixer((8, 8, 1), 4, 4, 5, 2, (3, 7), act, 0.7),
    "vgg": lambda act: vision.vgg((8, 8, 1), 4, (2, "M", 3, 3, "M"), activation=act),
    "vgg batchnorm": lambda act: vision.vgg(
        (8, 8, 1), 4, (2, "M", 3, "M"), batchnorm=True, activation=act
    ),
}


@pytest.mark.parametrize("loss", ["log", "square"])
@pytest.mark.parametrize("act", ["relu", "tanh", "gelu"])
@pytest.mark.parametrize("model", MODELS)
def test_multiplier_gradients_by_differences(host_dev, model, act, loss):
    """Every multiplier of weights, biases, gains, shifts and mu, to 1e-7 of the largest."""
    net, rng = MODELS[model](act), np.random.default_rng(5)
    x = rng.standard_normal((8, 8, 8, 1))
    w = net.init(rng, 1.2, 0.3) | {n: a + 0.1 for n, a in net.init_buffers().items()}

    def probes(k, shape):
        return [sphere(np.random.default_rng([k, i]), shape) for i in range(2)]

    g = {n: np.empty(a.shape) for n, a in w.items() if not n.endswith((".mean", ".var"))}
    jacobian_loss(host_dev, net, w, x, probes, g, loss)

    def at(name, a):
        return float(
            jacobian_loss(host_dev, net, w | {name: a * w[name]}, x, probes, None, loss)[0]
        )

    claimed = {n: float((g[n] * w[n]).sum()) for n in g}
    h = 2e-4 if act == "tanh" or act == "gelu" else 2e-6  # ReLU: stay on one side of every kink
    scale = max(map(abs, claimed.values()))
    for n in g:
        measured = (8 * (at(n, 1 + h) - at(n, 1 - h)) - (at(n, 1 + 2 * h) - at(n, 1 - 2 * h))) / (
            12 * h
        )
        assert abs(claimed[n] - measured) < 1e-7 * scale, (n, claimed[n], measured)


def exact_relu(net, w, x):
    """J of every block of a ReLU MLP without norms, from its masks and weights: (1/(B N)) sum_b
    sum_ij W_ij^2 phi'_bj^2"""
    h, J = x.reshape(len(x), -1), []
    for name in (n[: -len(".weight")] for n in net.shapes if n.endswith(".weight")):
        W = w[name + ".weight"]
        slope = np.ones_like(h) if name == "input" else (h > 0).astype(float)
        J.append(float((slope**2 @ (W**2)).sum() / (len(x) * W.shape[1])))
        h = (h if name == "input" else np.maximum(h, 0)) @ W + w[name + ".bias"]
    return np.array(J)


@pytest.mark.slow
@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_every_block_of_a_deep_network_comes_to_one(factor):
    """50 ReLU layers, sigma_w off by 2 either way: J of 0.25 or 4 to 1 within 2 %, measured from
    the exact Jacobians."""
    dev, rng = Device("cpu", np, "float32"), np.random.default_rng(0)
    net = vision.deep_mlp(100, 100, 50, 100)
    x = rng.standard_normal((64, 100))
    start = net.init(rng, factor * math.sqrt(2), first=factor)
    before = exact_relu(net, start, x)
    assert np.abs(before / factor**2 - 1).max() < 0.4
    assert abs(before.mean() / factor**2 - 1) < 0.02
    tuned, history = autoinit(dev, net, start, x, rng, 80, probes=2, schedule=cosine(0, 80))
    after = exact_relu(net, tuned, x)
    assert np.abs(after - 1).max() < 0.02, after
    assert history["loss"][0] > 40
    assert len(history["loss"]) == len(history["apjn"]) == 81


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["log", "square"])
@pytest.mark.parametrize("J", [0.3, 1.5, 3.0])
def test_relu_layers_follow_the_predicted_curve(host_dev, J, loss):
    """Plain descent: J of layers with frozen masks, one number each, against the map of
    relu_dynamics."""
    rng = np.random.default_rng(1)
    net = vision.deep_mlp(60, 60, 6, 60)
    kappa, steps, x = 0.3, 6, rng.standard_normal((40, 60))
    w = net.init(rng, 1.0)
    kernels = [n for n in net.shapes if n.endswith(".weight")]
    for k, n in enumerate(kernels):  # exactly J, whatever was drawn
        for _ in range(2):
            w[n] = w[n] * math.sqrt(J / exact_relu(net, w, x)[k])
    np.testing.assert_allclose(exact_relu(net, w, x), J, rtol=1e-12)
    # J = a^2 sigma_w^2/2 of a hidden layer, a^2 sigma_w^2 of the first: kappa = lr * 2 J(a = 1)
    rate = kappa / (2 * J)

    def exact(k, shape):
        return [np.tile(e, (len(x), 1)) for e in np.eye(shape[1])]

    a = dict.fromkeys(kernels, 1.0)
    curve = [J]
    for _ in range(steps):
        g = {n: np.empty(net.shapes[n]) for n in a}
        jacobian_loss(host_dev, net, w, x, exact, g, loss)
        for n in a:
            step = -rate * (g[n] * w[n]).sum() / a[n] ** 2
            a[n], w[n] = a[n] * (1 + step), w[n] * (1 + step)
        measured = exact_relu(net, w, x)
        assert np.ptp(measured) < 1e-9
        curve.append(measured.mean())
    np.testing.assert_allclose(curve, relu_dynamics(J, kappa, steps, loss), rtol=1e-9)


def test_plain_steps_of_the_tuning_follow_it_too(host_dev):
    """autoinit with probes: mean J of 20 wide layers over three steps."""
    rng = np.random.default_rng(2)
    net = vision.deep_mlp(200, 200, 20, 200)
    w = net.init(rng, 2.0, first=math.sqrt(2))
    kappa = 0.25
    _, history = autoinit(
        host_dev, net, w, rng.standard_normal((16, 200)), rng, 4, kappa / 4, plain=True
    )
    measured = np.array(history["apjn"])[:, 1:].mean(axis=1)
    np.testing.assert_allclose(measured, relu_dynamics(2.0, kappa, 4), rtol=0.03)


def relu_converges(J, kappa, loss):
    """Whether `relu_dynamics` tends to J = 1: kappa < 1, and for the square loss J < 1 + 2/kappa,
    beyond which a step leads farther away: y - kappa y (y^2 - 1) < -y."""
    return kappa < 1 and (loss == "log" or 1 + 2 / kappa > J)


def test_convergence_of_relu_layers():
    for loss in ("log", "square"):
        for J in (1e-3, 0.1, 0.9, 1.1, 3.0, 20.0):
            for kappa in (0.05, 0.4, 0.95, 1.3):
                late = (
                    relu_dynamics(J, kappa, 20_000, loss)[-1]
                    if not (loss == "square" and 1 + 2 / kappa < J)
                    else np.inf
                )
                assert (abs(late - 1) < 1e-6) == relu_converges(J, kappa, loss), (
                    loss,
                    J,
                    kappa,
                    late,
                )
            one_step = relu_one_step(J, loss)
            # lands on 1, and below it does not cross
            assert abs(relu_dynamics(J, one_step, 1, loss)[1] - 1) < 1e-12
            assert (relu_dynamics(J, 0.9 * one_step, 1, loss)[1] - 1) * (J - 1) > 0
    for J, kappa in zip((0.01, 0.1, 0.5, 2, 10), (0.0195, 0.0939, 0.299, 0.845, 2.97), strict=True):
        assert abs(relu_one_step(J) / kappa - 1) < 5e-3
    cycle = relu_dynamics(2.0, 1.02, 5000)[-2:]
    np.testing.assert_allclose(sorted(cycle), [0.854, 1.206], atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "settings", "tune", "below"),
    [
        (lambda: vision.deep_mlp(64, 60, 15, 60, "tanh"), (1.6, 0.3), ("weight", "bias"), 0.1),
        (
            lambda: vision.deep_mlp(64, 60, 15, 60, "gelu", "pre"),
            (1.0, 0.5),
            ("weight", "bias"),
            0.2,
        ),
        (
            lambda: vision.deep_mlp(64, 60, 15, 60, "relu", mu=0.7),
            (1.5, 0.0),
            ("weight", "bias"),
            0.05,
        ),
        (
            lambda: vision.resmlp((8, 8, 1), 10, 2, 24, 3, 48, 1.0),
            (1.5, 0.0),
            ("weight", "gain", "mu"),
            0.3,
        ),
        (
            lambda: vision.vgg((8, 8, 1), 10, (8, 8, "M", 16, 16)),
            (0.7, 0.0),
            ("weight", "bias"),
            0.05,
        ),
    ],
    ids=["tanh", "gelu pre-LN", "residual", "resmlp", "vgg"],
)
def test_other_networks_come_close(build, settings, tune, below):
    dev, rng = Device("cpu", np, "float32"), np.random.default_rng(0)
    net, x = build(), rng.standard_normal((32, 8, 8, 1))
    tuned, history = autoinit(
        dev, net, net.init(rng, *settings), x, rng, 60, 0.05, tune=tune, schedule=cosine(0, 60)
    )
    assert history["loss"][-1] < below < history["loss"][0] / 5, history["loss"][
        :: len(history["loss"]) // 6
    ]
    assert set(tuned) == set(net.shapes) | {
        n for n in net.buffers if n.endswith(".mu") and "mu" in tune
    }


@pytest.mark.slow
def test_nothing_is_tuned_but_what_was_asked(dev):
    net, rng = vision.deep_mlp(64, 10, 2, 4, "tanh", "batch", 0.5), np.random.default_rng(0)
    w = net.init(rng, 1.5, 0.2)
    before = {n: a.copy() for n, a in w.items()}
    tuned, history = autoinit(dev, net, w, rng.standard_normal((32, 64)), rng, 50, tune=("gain",))
    for n in w:
        np.testing.assert_array_equal(w[n], before[n])  # the caller's arrays stay
        ratio = tuned[n] / np.where(w[n] == 0, 1, w[n])
        if w[n].any():
            assert np.ptp(ratio) < 1e-5, n
            assert (abs(ratio.flat[0] - 1) > 1e-3) == n.endswith(".gain"), n
    assert len(history["loss"]) == 51
    again, _ = autoinit(dev, net, w, np.ones((4, 64)), np.random.default_rng(0), 0)
    assert all((again[n] == w[n].astype(dev.dtype)).all() for n in w)


def test_a_loss_that_is_not_finite_ends_the_tuning_with_a_line():
    dev, rng = Device("cpu", np, "float32"), np.random.default_rng(0)
    net = vision.deep_mlp(64, 10, 60, 4, "tanh", "none", mu=1.0)
    with pytest.raises(InputError, match="not|nan|inf"):
        autoinit(
            dev,
            net,
            {n: a * 1e30 for n, a in net.init(rng, 1.0).items()},
            rng.standard_normal((4, 64)),
            rng,
            3,
        )
