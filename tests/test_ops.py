"""Every operation on every device gives what it gives in float64 on NumPy, with and without the
ensemble axis."""

import numpy as np
import pytest

from tinygrok.audit.case import cpu_device
from tinygrok.engine import kernels
from tinygrok.engine.errors import InputError
from tinygrok.engine.rng import mask_keys
from tinygrok.models.mlp import TwoLayerNet
from tinygrok.models.protocol import Mode
from tinygrok.ops import activation, dropout, embedding, linear, loss, norm

LEADS = [(), (3,)]


class Draw:
    """Seeded arrays, the same on every device."""

    def __init__(self, dev):
        self.dev, self.rng = dev, np.random.default_rng(7)

    def __call__(self, *shape):
        return self.dev.to_device(self.rng.standard_normal(shape))

    def labels(self, high, *shape):
        return self.dev.to_device(self.rng.integers(0, high, shape))

    def weights(self, *shape):
        """Shares of rows: some of them 0, not all."""
        shares = self.rng.choice([0.0, 1.0, 2.0], shape)
        return self.dev.to_device(shares + np.eye(shape[-1])[1])


def nan_like(dev, x):
    """An output buffer whose old contents must not reach the result."""
    return dev.to_device(np.full(x.shape, np.nan))


def run_linear(dev, lead):
    draw = Draw(dev)
    x, w, b, dy = draw(*lead, 4, 3), draw(*lead, 3, 2), draw(*lead, 2), draw(*lead, 4, 2)
    y, cache = linear.linear_forward(dev, x, w, b)
    dw, db = nan_like(dev, w), nan_like(dev, b)
    dx = linear.linear_backward(dev, dy, cache, dw, db)
    assert linear.linear_backward(dev, dy, cache, dw, need_dx=False) is None
    more_w, more_b = dev.to_device(np.ones(w.shape)), dev.to_device(np.ones(b.shape))
    linear.linear_backward(dev, dy, cache, more_w, more_b, need_dx=False, accumulate=True)
    return y, dw, db, dx, more_w, more_b


def run_shared_input(dev, lead):
    """All members read one input; its gradient would be a sum over members, so only dw is asked
    for."""
    draw = Draw(dev)
    x, w, dy = draw(4, 3), draw(*lead, 3, 2), draw(*lead, 4, 2)
    y, cache = linear.linear_forward(dev, x, w)
    dw = nan_like(dev, w)
    linear.linear_backward(dev, dy, cache, dw, need_dx=False)
    return y, dw


def run_embedding(dev, lead, own=False, sort=False, terms=2):
    draw = Draw(dev)
    u, dh = draw(*lead, terms, 5, 3), draw(*lead, 9, 3)
    index = np.random.default_rng(1).integers(0, 5, (*(lead if own else ()), terms, 9))
    if sort:
        index.sort(axis=-1)
    rows = embedding.RowIndex(dev, index, 5)
    h, cache = embedding.embedding_forward(dev, u, rows)
    du = nan_like(dev, u)
    embedding.embedding_backward(dev, dh, cache, du)
    more = dev.to_device(np.ones(u.shape))
    embedding.embedding_backward(dev, dh, cache, more, accumulate=True)
    np.testing.assert_allclose(dev.to_host(more), 1 + dev.to_host(du), rtol=1e-5, atol=1e-5)
    return h, du


def run_activation(dev, lead, kind):
    draw = Draw(dev)
    x, dy = draw(*lead, 4, 3), draw(*lead, 4, 3)
    y, cache = activation.activation_forward(dev, x, kind)
    dx = activation.activation_backward(dev, dy, cache)
    in_place = activation.activation_backward(dev, dy, cache, dx=dy)
    return y, dx, in_place, activation.activation_second(dev, x, kind)


def run_dropout(dev, lead):
    draw = Draw(dev)
    x, dy = draw(*lead, 6, 5), draw(*lead, 6, 5)
    keys = mask_keys([3, 4, 5] if lead else 3, step=2)
    y, cache = dropout.dropout_forward(dev, x, 0.4, keys)
    rates = [0.0, 0.2, 0.7] if lead else 0.2  # a rate per member
    own, _ = dropout.dropout_forward(dev, x, rates, keys)
    return y, own, dropout.dropout_backward(dev, dy, cache)


def run_batchnorm(dev, lead, train, weighted):
    draw = Draw(dev)
    x = draw(*lead, 6, 4)
    gain, shift, mean = (draw(*lead, 4) for _ in range(3))
    dy = draw(*lead, 6, 4)
    var = dev.to_device(draw.rng.uniform(0.5, 2, (*lead, 4)))
    weight = draw.weights(*lead, 6) if weighted else None
    y, cache = norm.batchnorm_forward(dev, x, gain, shift, mean, var, train, weight)
    dgain, dshift = nan_like(dev, gain), nan_like(dev, shift)
    dx = norm.batchnorm_backward(dev, dy, cache, dgain, dshift)
    return y, mean, var, dgain, dshift, dx


def run_layernorm(dev, lead, with_shift):
    draw = Draw(dev)
    x, gain, shift, dy = draw(*lead, 3, 5), draw(*lead, 5), draw(*lead, 5), draw(*lead, 3, 5)
    y, cache = norm.layernorm_forward(dev, x, gain, shift if with_shift else None)
    dgain, dshift = nan_like(dev, gain), nan_like(dev, shift) if with_shift else None
    dx = norm.layernorm_backward(dev, dy, cache, dgain, dshift)
    given = dev.empty(x.shape), dev.empty(x.shape)
    again, cache = norm.layernorm_forward(
        dev, x, gain, shift if with_shift else None, xhat=given[0], out=given[1]
    )
    assert cache[0] is given[0]
    assert again is given[1]
    more = [dev.to_device(np.ones(gain.shape)) for _ in range(2)]
    if not with_shift:
        more[1] = None
    # A further shard, in place.
    norm.layernorm_backward(dev, dy, cache, *more, dx=dy, accumulate=True)
    return (y, dgain, dx, again, dy, more[0], *([dshift, more[1]] if with_shift else []))


def run_softmax(dev, lead):
    draw = Draw(dev)
    y, cache = loss.softmax_forward(dev, draw(*lead, 4, 5))
    return y, loss.softmax_backward(dev, draw(*lead, 4, 5), cache)


def run_loss(dev, lead, kind, weighted, shared=False):
    draw = Draw(dev)
    z, target = draw(*lead, 6, 5), draw.labels(5, *(() if shared else lead), 6)
    weight = draw.weights(*lead, 6) if weighted else None
    forward, backward = loss.LOSSES[kind]
    value, cache = forward(dev, z, target, weight)
    dz = backward(dev, 1.0, cache)
    rows = loss.ROW_LOSSES[kind](dev, z, target)[0]
    in_place, cache = forward(dev, z, target, weight, out=z)
    return value, dz, rows, in_place, backward(dev, 1.0, cache, dlogits=z)


def run_two_layer(dev, lead, terms, kind, rate):
    draw = Draw(dev)
    net = TwoLayerNet(5, 4, terms, kind)
    w = {name: draw(*lead, *shape) for name, shape in net.shapes.items()}
    rows = embedding.RowIndex(dev, np.random.default_rng(2).integers(0, 5, (terms, 8)), 5)
    dropout = (mask_keys([1, 2, 3] if lead else 1, 1), rate) if rate else None
    z, tape = net.forward(dev, w, rows, Mode(dropout=dropout))
    z = z.copy()
    g = {name: nan_like(dev, x) for name, x in w.items()}
    net.backward(dev, draw(*lead, 8, 5), tape, g)
    return z, *g.values()


KINDS = ["power3", "power4", *(k for k in kernels.ACTIVATIONS if k != "power")]
RUNS = {
    "linear": run_linear,
    "linear shared input": run_shared_input,
    "embedding": run_embedding,
    "embedding single": lambda dev, lead: run_embedding(dev, lead, terms=1),
    "embedding sorted": lambda dev, lead: run_embedding(dev, lead, sort=True, terms=3),
    "embedding own": lambda dev, lead: run_embedding(dev, lead, own=True),
    **{f"activation {k}": lambda dev, lead, k=k: run_activation(dev, lead, k) for k in KINDS},
    "dropout": run_dropout,
    "batchnorm": lambda dev, lead: run_batchnorm(dev, lead, True, False),
    "batchnorm weighted": lambda dev, lead: run_batchnorm(dev, lead, True, True),
    "batchnorm eval": lambda dev, lead: run_batchnorm(dev, lead, False, False),
    "layernorm": lambda dev, lead: run_layernorm(dev, lead, True),
    "layernorm no shift": lambda dev, lead: run_layernorm(dev, lead, False),
    "softmax": run_softmax,
    **{
        f"{k} {w} {s}": lambda dev, lead, k=k, w=w, s=s: run_loss(
            dev, lead, k, w == "weighted", s == "shared"
        )
        for k in loss.LOSSES
        for w in ("plain", "weighted")
        for s in ("own", "shared")
    },
    "two-layer": lambda dev, lead: run_two_layer(dev, lead, 2, "square", 0.0),
    "two-layer three terms, dropout": lambda dev, lead: run_two_layer(dev, lead, 3, "power3", 0.3),
}


@pytest.mark.parametrize("lead", LEADS, ids=["alone", "ensemble"])
@pytest.mark.parametrize("name", RUNS)
def test_same_numbers_on_every_device(dev, name, lead):
    got, expected = RUNS[name](dev, lead), RUNS[name](cpu_device(), lead)
    rtol = 2e-5 if dev.dtype == np.float32 else 1e-12
    for i, (x, y) in enumerate(zip(got, expected, strict=True)):
        x = dev.to_host(x)
        assert x.dtype == dev.dtype, f"output {i} is {x.dtype}"
        np.testing.assert_allclose(
            x, y, rtol=rtol, atol=rtol * max(1, np.abs(y).max()), err_msg=f"output {i}"
        )


def test_dropout_mask_is_a_function_of_the_element(dev):
    """A shard that starts at row r draws the rows of the whole batch; the rate is kept; steps
    differ."""
    N, keys = 50, mask_keys(1, 1)
    ones = dev.to_device(np.ones((400, N)))
    whole = dev.to_host(dropout.dropout_forward(dev, ones, 0.3, keys)[0])
    part = dev.to_host(dropout.dropout_forward(dev, ones[100:], 0.3, keys, offset=100 * N)[0])
    other = dev.to_host(dropout.dropout_forward(dev, ones, 0.3, mask_keys(1, 2))[0])
    np.testing.assert_array_equal(whole[100:], part)
    assert set(np.unique(whole)) == {0, dev.dtype.type(1 / 0.7)}
    assert abs((whole == 0).mean() - 0.3) < 0.01  # three sigma of 20,000 draws
    assert abs(np.corrcoef(whole.ravel(), other.ravel())[0, 1]) < 0.03
    assert abs(np.corrcoef(whole[:-1].ravel(), whole[1:].ravel())[0, 1]) < 0.03


def test_refusals(dev):
    with pytest.raises(InputError, match="0..4"):
        embedding.RowIndex(dev, np.array([[0, 5]]), 5)
    with pytest.raises(InputError, match="not 0.5"):
        embedding.RowIndex(dev, np.array([0.5]), 5)
    with pytest.raises(InputError, match="relu"):
        activation.resolve("rulu")
    with pytest.raises(InputError):
        activation.resolve("power0")
    with pytest.raises(InputError):
        dropout.dropout_forward(dev, dev.zeros((2, 2)), 1.0, mask_keys(0, 1))
    with pytest.raises(InputError):
        TwoLayerNet(5, 0)


@pytest.mark.parametrize("shared", ["x", "w"])
def test_gradients_of_a_shared_operand_add_up_over_the_members(dev, shared):
    """linear_backward gives those of every member; L = the sum of dy y over all members."""
    x, w, dy = (np.random.default_rng(i).standard_normal((3, 4, 4)) for i in range(3))
    shared_x, shared_w = (x[0], w) if shared == "x" else (x, w[0])
    on_device = [dev.to_device(v) for v in (shared_x, shared_w, dy)]
    _, cache = linear.linear_forward(dev, *on_device[:2])
    dw = dev.zeros((3, 4, 4))
    dx = linear.linear_backward(dev, on_device[2], cache, dw)
    found = dev.to_host(dx if shared == "x" else dw).sum(axis=0)
    if shared == "x":
        expected = sum(dy[e] @ w[e].T for e in range(3))
    else:
        expected = sum(x[e].T @ dy[e] for e in range(3))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_softmax_and_cross_entropy_survive_large_logits(dev):
    z = dev.to_device(np.array([[1e4, 0.0, -1e4], [-1e4, -1e4, -1e4]]))
    value, cache = loss.cross_entropy_forward(dev, z, dev.to_device(np.array([0, 1])))
    assert np.isclose(float(dev.to_host(value)), np.log(3) / 2)
    np.testing.assert_allclose(
        dev.to_host(loss.softmax_forward(dev, z)[0]), [[1, 0, 0], [1 / 3] * 3], rtol=1e-6
    )
