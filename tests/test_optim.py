"""Every optimiser against five plain lines of its formula, and the walk over blocks."""

import numpy as np
import pytest

from tinygrok.engine import optim
from tinygrok.engine.device import get_device
from tinygrok.engine.errors import InputError
from tinygrok.engine.optim import OPTIMIZERS, Optimizer, linear_warmup
from tinygrok.engine.params import Arena

SHAPES = {"w": (3, 5), "b": (5,), "u": (2, 3, 4)}
STEPS = 6


def plain_adamw(w, grads, lr, decay):
    m = v = 0 * w
    for t, g in enumerate(grads, 1):
        m = 0.9 * m + 0.1 * g
        v = 0.98 * v + 0.02 * g**2
        w = w - lr(t) * decay * w - lr(t) * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.98**t)) + 1e-8)
    return w


def plain_sgd(w, grads, lr, decay):
    m = 0 * w
    for t, g in enumerate(grads, 1):
        m = 0.8 * m + g + decay * w
        w = w - lr(t) * m
    return w


def plain_grokfast(w, grads, lr, decay):
    slow = grads[0]
    filtered = []
    for g in grads:
        slow = 0.7 * slow + 0.3 * g
        filtered.append(g + 3 * slow)
    return plain_adamw(w, filtered, lr, decay)


def plain_constant_norm(w, grads, lr, decay):
    """Of members (E, n), each with all of its tensors in a row."""
    m = v = 0 * w
    first = np.linalg.norm(w, axis=1, keepdims=True)
    for t, g in enumerate(grads, 1):
        m = 0.9 * m + 0.1 * g
        v = 0.98 * v + 0.02 * g**2
        w = w - lr(t) * decay * w - lr(t) * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.98**t)) + 1e-8)
        w = w * first / np.linalg.norm(w, axis=1, keepdims=True)
    return w


def plain_muon(w, grads, lr, decay):
    """Of matrices; every leading axis holds matrices of their own."""
    m = 0 * w
    for t, g in enumerate(grads, 1):
        m = 0.95 * m + 0.05 * g
        x = 0.05 * g + 0.95 * m
        x = x / (np.linalg.norm(x, axis=(-2, -1), keepdims=True) + 1e-7)
        for _ in range(5):
            u, s, v = np.linalg.svd(x, full_matrices=False)
            s = 3.4445 * s - 4.775 * s**3 + 2.0315 * s**5
            x = u * s[..., None, :] @ v
        rate = 0.1 * lr(t) / lr(10**9)
        w = (1 - rate * decay) * w - rate * max(1, w.shape[-1] / w.shape[-2]) ** 0.5 * x
    return w


PLAIN = {
    "adamw": (plain_adamw, {"betas": (0.9, 0.98)}),
    "sgd": (plain_sgd, {"momentum": 0.8}),
    "muon": (plain_adamw, {"betas": (0.9, 0.98), "matrices": ["w", "u"], "matrix_lr": 0.1}),
    "grokfast": (plain_grokfast, {"betas": (0.9, 0.98), "memory": 0.7, "gain": 3.0}),
    "constant_norm": (plain_constant_norm, {"betas": (0.9, 0.98)}),
}
TOGETHER = {"constant_norm"}  # the tensors of a member depend on each other
# Parameters with a formula of their own.
WHOLE = {"muon": {"w": plain_muon, "u": plain_muon}}


def problem(dev, members):
    """Arenas of parameters and gradients, the starting values, and each step's gradients."""
    rng = np.random.default_rng(3)
    params, grads = (Arena(dev, SHAPES, members) for _ in range(2))
    start = {name: rng.standard_normal(shape) for name, shape in params.shapes.items()}
    params.load(start)
    per_step = [
        {name: rng.standard_normal(shape) for name, shape in params.shapes.items()}
        for _ in range(STEPS)
    ]
    return params, grads, start, per_step


def run(optimizer, grads, per_step):
    for t, arrays in enumerate(per_step, 1):
        grads.load(arrays)
        optimizer.step(t)


def column(values, shape):
    """Per-member values against arrays (E, *shape)"""
    return np.reshape(values, (-1, *[1] * len(shape)))


def in_a_row(arrays, members):
    """All tensors of every member side by side, as one tensor (E, n)."""
    return {"all": np.concatenate([x.reshape(members, -1) for x in arrays.values()], axis=1)}


def test_every_optimizer_has_its_plain_lines():
    assert set(PLAIN) == set(OPTIMIZERS)


@pytest.mark.parametrize("members", [None, 3], ids=["alone", "ensemble"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_formula(dev, kind, members, monkeypatch):
    """Several steps, own rate and decay of a member, a parameter without decay, a schedule."""
    monkeypatch.setattr(optim, "BLOCK", 4)  # several blocks a tensor, the last one not full
    plain, options = PLAIN[kind]
    params, grads, start, per_step = problem(dev, members)
    rates = np.array([0.05, 0.02, 0.1]) if members else np.array([0.05])
    decays = np.array([0.3, 1.5, 0.0]) if members else np.array([0.3])
    schedule = linear_warmup(4)
    lr = rates if members else float(rates[0])
    decay = decays if members else float(decays[0])
    optimizer = OPTIMIZERS[kind](
        dev, params, grads, lr, weight_decay=decay, schedule=schedule, no_decay=["b"], **options
    )
    run(optimizer, grads, per_step)
    rtol = 1e-12 if dev.dtype == np.float64 else 2e-5
    lift = 100 if kind == "muon" else 1  # of small singular values, rounding and all
    found = params.to_host()
    own_decays = {name: np.where(name == "b", 0.0, column(decays, SHAPES[name])) for name in found}
    shapes = SHAPES
    if kind in TOGETHER:
        members = len(rates)
        sizes = [(members, np.prod(shape)) for shape in SHAPES.values()]
        spread = [
            np.broadcast_to(x.reshape(-1, 1), size)
            for x, size in zip(own_decays.values(), sizes, strict=True)
        ]
        own_decays = {"all": np.concatenate(spread, axis=1)}
        shapes = {"all": own_decays["all"].shape[1:]}
        found, start, *per_step = (in_a_row(x, members) for x in (found, start, *per_step))
    for name, got in found.items():
        shape = shapes[name]
        alone = column(rates, shape)
        formula = WHOLE.get(kind, {}).get(name, plain)
        expected = formula(
            start[name].reshape(-1, *shape),
            [arrays[name].reshape(-1, *shape) for arrays in per_step],
            lambda t, alone=alone: alone * schedule(t),
            own_decays[name],
        )
        close = {"rtol": lift * rtol, "atol": lift * rtol}
        np.testing.assert_allclose(got.reshape(expected.shape), expected, **close)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_member_is_updated_as_a_network_alone(host_dev, kind):
    _, options = PLAIN[kind]
    params, grads, start, per_step = problem(host_dev, 3)
    many = OPTIMIZERS[kind](host_dev, params, grads, [0.1, 0.2, 0.3], weight_decay=0.5, **options)
    run(many, grads, per_step)
    own_params, own_grads = (Arena(host_dev, SHAPES) for _ in range(2))
    own_params.load({name: x[1] for name, x in start.items()})
    one = OPTIMIZERS[kind](host_dev, own_params, own_grads, 0.2, weight_decay=0.5, **options)
    run(one, own_grads, [{name: g[1] for name, g in arrays.items()} for arrays in per_step])
    for name, x in own_params.to_host().items():
        np.testing.assert_array_equal(x, params.to_host(1)[name])


@pytest.mark.parametrize(
    ("members", "no_decay", "count"),
    [(None, ["b"], 3), (None, ["u"], 2), (None, [], 1), (2, [], 6)],
)
def test_neighbours_that_are_updated_alike_share_blocks(host_dev, members, no_decay, count):
    """Those of one network, all of it once."""
    params, grads, *_ = problem(host_dev, members)
    optimizer = OPTIMIZERS["adamw"](host_dev, params, grads, no_decay=no_decay)
    assert len(optimizer._blocks) == count
    for block in optimizer._blocks:
        for x in block.views[:2]:
            x += 1
    assert (grads.flat == 1).all()


@pytest.mark.parametrize("least", [0, 10**6])
def test_threads_are_woken_only_where_there_is_work(least, monkeypatch):
    dev = get_device("cpu", threads=2)
    params, grads, *_ = problem(dev, None)
    monkeypatch.setattr(optim, "WORTH_THREADS", least)
    OPTIMIZERS["adamw"](dev, params, grads, no_decay=["b"]).step(1)
    assert (dev._pool is None) == (least > 0)


# -- an optimiser that needs whole matrices --------------------------------------------------------


class Whitened(Optimizer):
    """w <- (1 - lr wd) w - lr s,  s <- s/2 + g g^T g: not elementwise"""

    state_names = ("s",)

    def __init__(self, dev, params, grads, lr, weight_decay=0.0, no_decay=()):
        super().__init__(dev, params, grads, lr, weight_decay, lambda t: 1 / t, no_decay, None)

    def _whole(self, name):
        return True

    def _update_whole(self, views, t, lr, decay):
        w, g, s = views
        s *= 0.5
        s += g @ g.T @ g if g.ndim == 2 else g
        w *= 1 - float(lr * decay)
        w -= float(lr) * s


@pytest.mark.parametrize("members", [None, 3], ids=["alone", "ensemble"])
def test_whole_tensors(dev, members, monkeypatch):
    """_update_whole gets every member's tensors in their own shapes, on every device."""
    monkeypatch.setattr(optim, "BLOCK", 4)
    params, grads, start, per_step = problem(dev, members)
    decays = [0.3, 1.5, 0.0] if members else [0.3]
    optimizer = Whitened(dev, params, grads, 0.01, decays if members else decays[0], ["b"])
    run(optimizer, grads, per_step)
    rtol = 1e-12 if dev.dtype == np.float64 else 2e-5
    for name, got in params.to_host().items():
        shape = SHAPES[name]
        for e, decay in enumerate(decays):
            w, s = start[name].reshape(-1, *shape)[e], 0.0
            for t, arrays in enumerate(per_step, 1):
                g = arrays[name].reshape(-1, *shape)[e]
                s = s / 2 + (g @ g.T @ g if g.ndim == 2 else g)
                w = w - 0.01 / t * (0.0 if name == "b" else decay) * w - 0.01 / t * s
            np.testing.assert_allclose(got.reshape(-1, *shape)[e], w, rtol=rtol, atol=rtol)


def test_protocol_is_asked_for(host_dev):
    """An optimiser without a formula says so at its first step."""

    class Nothing(Optimizer):
        state_names = ()

    arena = Arena(host_dev, SHAPES)
    with pytest.raises(NotImplementedError):
        Nothing(host_dev, arena, arena, 0.1, 0.0, lambda t: 1.0, (), None).step(1)


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (2, 5, 5)])
def test_orthogonalised(host_dev, shape):
    """The directions of g, all of about the same length."""
    g = np.random.default_rng(0).standard_normal(shape).astype(host_dev.dtype)
    u, _, v = np.linalg.svd(g, full_matrices=False)
    got = u.swapaxes(-1, -2) @ optim.orthogonalised(host_dev, g) @ v.swapaxes(-1, -2)
    lengths = np.diagonal(got, axis1=-2, axis2=-1)
    assert (lengths > 0.3).all()
    assert (lengths < 1.25).all()
    diagonal = lengths[..., None] * np.eye(lengths.shape[-1])
    np.testing.assert_allclose(got, diagonal, atol=1e-4)


def test_constant_then_linear():
    factor = optim.constant_then_linear(4, 10, 20)
    assert [factor(t) for t in (1, 4, 10, 15, 20, 25)] == [0.25, 1.0, 1.0, 0.5, 0.0, 0.0]


@pytest.mark.parametrize("names", [["w", "nothing"], ["b"]])
def test_muon_refuses_what_is_no_matrix(host_dev, names):
    params, grads, *_ = problem(host_dev, None)
    with pytest.raises(ValueError, match="matrices names no matrix"):
        OPTIMIZERS["muon"](host_dev, params, grads, matrices=names)


def test_muon_without_matrices_would_be_adamw(host_dev):
    params, grads, *_ = problem(host_dev, None)
    with pytest.raises(TypeError, match="matrices"):
        OPTIMIZERS["muon"](host_dev, params, grads)


def test_singular_values_of_orthogonalised(host_dev):
    """Those from 0.002 of the norm on come close to 1, the smaller ones at least up."""
    dev = host_dev
    s = np.geomspace(1e-6, 1, 300)
    became = []
    for value in s:
        g = np.diag([value, np.sqrt(1 - value**2)]).astype(dev.dtype)
        became.append(optim.orthogonalised(dev, g)[0, 0])
    became = np.array(became)
    large = s >= 0.002
    assert np.all((became[large] > 0.68) & (became[large] < 1.21))
    np.testing.assert_allclose(became[s < 1e-5], 484.9 * s[s < 1e-5], rtol=1e-3)


# -- Grokfast and the constant norm ----------------------------------------------------------------


def test_grokfast_without_a_gain_is_adamw(host_dev):
    params, grads, start, per_step = problem(host_dev, 3)
    run(OPTIMIZERS["grokfast"](host_dev, params, grads, 0.1, gain=0.0), grads, per_step)
    filtered = params.to_host()
    params.load(start)
    run(OPTIMIZERS["adamw"](host_dev, params, grads, 0.1), grads, per_step)
    for name, x in params.to_host().items():
        np.testing.assert_array_equal(x, filtered[name])


def test_a_constant_gradient_is_amplified_at_once(host_dev):
    """The running mean begins as the first gradient, as in the authors' code: no warming up."""
    params, grads, _, per_step = problem(host_dev, 3)
    optimizer = OPTIMIZERS["grokfast"](host_dev, params, grads, 0.1, gain=2.0)
    for t in (1, 2, 3):
        grads.load(per_step[0])
        optimizer.step(t)
        for name, x in grads.to_host().items():
            np.testing.assert_allclose(x, 3 * per_step[0][name], rtol=1e-12)


@pytest.mark.parametrize("norm", [None, 2.0, [1.0, 2.0, 3.0]])
def test_the_norm_is_constant(dev, norm):
    params, grads, _, per_step = problem(dev, 3)
    before = dev.to_host(optim.global_norm(dev, params)).ravel()
    optimizer = OPTIMIZERS["constant_norm"](dev, params, grads, 0.1, norm=norm)
    run(optimizer, grads, per_step)
    after = dev.to_host(optim.global_norm(dev, params)).ravel()
    expected = before if norm is None else np.broadcast_to(norm, 3)
    np.testing.assert_allclose(after, expected, rtol=1e-5)
    assert optimizer.hyperparameters()["norm"] == pytest.approx(list(expected), rel=1e-5)


@pytest.mark.parametrize("norm", [-1.0, np.inf, [1.0, 2.0], "x"])
def test_a_norm_that_is_none_is_refused(host_dev, norm):
    params, grads, *_ = problem(host_dev, 3)
    with pytest.raises(InputError, match="the norm must be"):
        OPTIMIZERS["constant_norm"](host_dev, params, grads, 0.1, norm=norm)
