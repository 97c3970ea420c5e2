"""PyTorch in the corners of the operations: windows of 3, stride with padding, many chunks, large
arrays, weights that hold zeros, results added or in place, blocks of causal attention."""

import numpy as np
import pytest

from tinygrok.audit.case import cpu_device
from tinygrok.ops import activation, attention, conv, loss, norm

torch = pytest.importorskip("torch", reason="torch is not installed (the oracle extra)")
pytestmark = pytest.mark.torch
F = torch.nn.functional
LEADS = pytest.mark.parametrize("lead", [(), (3,)], ids=["alone", "ensemble"])


class Bench:
    """Arrays of one dtype, the same for both sides, and the comparison of results."""

    def __init__(self, dtype):
        self.dtype = dtype
        self.dev = cpu_device(dtype)
        self.rng = np.random.default_rng(0)
        self.tolerance = 1e-12 if dtype == "float64" else 5e-6

    def draw(self, *shape):
        return self.rng.standard_normal(shape).astype(self.dtype)

    def full(self, shape, value):
        return np.full(shape, value, self.dtype)

    def leaves(self, *arrays):
        """PyTorch's copies, which ask for gradients."""
        return [torch.tensor(x, requires_grad=True) for x in arrays]

    def backward(self, y, dy):
        """PyTorch's backward from y, with the cotangent dy."""
        y.backward(torch.tensor(dy))

    def equal(self, ours, theirs, what):
        """The largest difference is small beside the largest entry."""
        ours = np.asarray(ours)
        theirs = np.asarray(theirs.detach() if hasattr(theirs, "detach") else theirs)
        assert ours.dtype == self.dtype, what
        gap = np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-300)
        assert gap <= self.tolerance, f"{what}: {gap:.1e}"


@pytest.fixture(params=["float64", "float32"])
def bench(request):
    return Bench(request.param)


def channels_first(x):
    return x.permute(0, 3, 1, 2)


def channels_last(x):
    return x.permute(0, 2, 3, 1)


# -- images ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("window", "H", "W"), [(2, 7, 6), (3, 9, 11), (4, 8, 8)])
def test_maxpool_with_ties(bench, window, H, W):
    """Equal pixels: the first one of a window takes the gradient."""
    x = bench.draw(3, H, W, 2).round(1)
    (t,) = bench.leaves(x)
    theirs = channels_last(F.max_pool2d(channels_first(t), window))
    y, cache = conv.maxpool_forward(bench.dev, x, window)
    dy = bench.draw(*y.shape)
    bench.backward(theirs, dy)
    bench.equal(y, theirs, "y")
    bench.equal(conv.maxpool_backward(bench.dev, dy, cache), t.grad, "dx")


GEOMETRIES = [(1, 1, 0), (1, 2, 0), (2, 2, 1), (3, 2, 1), (3, 1, 2), (5, 3, 2), (4, 1, 3)]
IMAGES = {"few": ((3, 9, 8, 2), 3), "chunks": ((40, 16, 17, 16), 8)}


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize(("kernel", "stride", "pad"), GEOMETRIES)
def test_convolution(bench, images, kernel, stride, pad):
    """Gradients added to what is there; of the weights alone, and of the images alone."""
    shape, N = IMAGES[images]
    dev = bench.dev
    x = bench.draw(*shape)
    w = bench.draw(kernel, kernel, shape[-1], N)
    b = bench.draw(N)
    tx, tw, tb = bench.leaves(x, w, b)
    weight = tw.permute(3, 2, 0, 1)
    theirs = channels_last(F.conv2d(channels_first(tx), weight, tb, stride, pad))
    y, cache = conv.conv_forward(dev, x, w, b, stride, pad)
    dy = bench.draw(*y.shape)
    bench.backward(theirs, dy)
    bench.equal(y, theirs, "y")

    dw = bench.full(w.shape, 2)
    db = bench.full(b.shape, 3)
    dx = conv.conv_backward(dev, dy, cache, dw, db, accumulate=True)
    bench.equal(dx, tx.grad, "dx")
    bench.equal(dw - 2, tw.grad, "dw, added")
    bench.equal(db - 3, tb.grad, "db, added")

    alone = bench.full(w.shape, np.nan)
    assert conv.conv_backward(dev, dy, cache, alone, None, need_dx=False) is None
    bench.equal(alone, tw.grad, "dw alone")
    bench.equal(conv.conv_backward(dev, dy, cache), tx.grad, "dx alone")


# -- activations -----------------------------------------------------------------------------------

ACTIVATIONS = {
    "identity": lambda x: 1.0 * x,
    "square": lambda x: x * x,
    "power1": lambda x: 1.0 * x,
    "power8": lambda x: x**8,
    "power11": lambda x: x**11,
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "tanh": torch.tanh,
    "erf": torch.erf,
}


@pytest.mark.parametrize("shape", [(7,), (50_001,), (130, 257)], ids=str)
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activation(bench, kind, shape):
    """Arrays beyond one block, with gaps, and dx in the memory of dy."""
    dev = bench.dev
    x = 2 * bench.draw(*shape)
    dy = bench.draw(*shape)
    (t,) = bench.leaves(x)
    theirs = ACTIVATIONS[kind](t)
    bench.backward(theirs, dy)
    y, cache = activation.activation_forward(dev, x, kind)
    bench.equal(y, theirs, "y")
    bench.equal(activation.activation_backward(dev, dy, cache), t.grad, "dx")

    half = activation.activation_backward(dev, dy[..., ::2], (x[..., ::2], kind))
    bench.equal(half, t.grad[..., ::2], "dx of arrays with gaps")
    activation.activation_backward(dev, dy, cache, dx=dy)
    bench.equal(dy, t.grad, "dx in place")


# -- norms -----------------------------------------------------------------------------------------


@LEADS
def test_batchnorm_of_weighted_rows(bench, lead):
    """Rows of weight 0, in place, added; the running variance is unbiased."""
    dev = bench.dev
    x = bench.draw(*lead, 40, 6)
    gain = bench.draw(*lead, 6)
    shift = bench.draw(*lead, 6)
    weight = bench.rng.choice([0.0, 1.0, 2.0], (*lead, 40)).astype(bench.dtype)
    tx, tgain, tshift = bench.leaves(x, gain, shift)
    n = torch.tensor(weight).sum(-1)[..., None]
    share = (torch.tensor(weight) / n)[..., None]
    mean = (tx * share).sum(-2, keepdim=True)
    var = ((tx - mean) ** 2 * share).sum(-2, keepdim=True)
    theirs = (tx - mean) / torch.sqrt(var + 1e-5) * tgain[..., None, :] + tshift[..., None, :]

    running_mean = bench.full(gain.shape, 0)
    running_var = bench.full(gain.shape, 1)
    y, cache = norm.batchnorm_forward(dev, x, gain, shift, running_mean, running_var, True, weight)
    dy = bench.draw(*y.shape)
    bench.backward(theirs, dy)
    bench.equal(y, theirs, "y")
    bench.equal(running_mean, 0.1 * mean[..., 0, :], "running mean")
    unbiased = var[..., 0, :] * n / (n - 1)
    bench.equal(running_var, 0.9 + 0.1 * unbiased, "running variance")

    dgain = bench.full(gain.shape, 5)
    dshift = bench.full(gain.shape, 7)
    norm.batchnorm_backward(dev, dy, cache, dgain, dshift, accumulate=True, dx=dy)
    bench.equal(dy, tx.grad, "dx in place")
    bench.equal(dgain - 5, tgain.grad, "dgain, added")
    bench.equal(dshift - 7, tshift.grad, "dshift, added")


@LEADS
def test_batchnorm_in_evaluation(bench, lead):
    """The running statistics, in place; they stay as they are."""
    dev = bench.dev
    x = bench.draw(*lead, 40, 6)
    gain = bench.draw(*lead, 6)
    shift = bench.draw(*lead, 6)
    mean = bench.draw(*lead, 6)
    var = np.abs(bench.draw(*lead, 6)) + bench.full((), 0.3)
    tx, tgain, tshift = bench.leaves(x, gain, shift)
    centred = tx - torch.tensor(mean)[..., None, :]
    xhat = centred / torch.sqrt(torch.tensor(var)[..., None, :] + 1e-5)
    theirs = xhat * tgain[..., None, :] + tshift[..., None, :]

    before = mean.copy(), var.copy()
    y, cache = norm.batchnorm_forward(dev, x, gain, shift, mean, var, train=False)
    np.testing.assert_array_equal((mean, var), before)
    dy = bench.draw(*y.shape)
    bench.backward(theirs, dy)
    bench.equal(y, theirs, "y")
    dgain = np.empty_like(gain)
    dshift = np.empty_like(gain)
    norm.batchnorm_backward(dev, dy, cache, dgain, dshift, dx=dy)
    bench.equal(dy, tx.grad, "dx in place")
    bench.equal(dgain, tgain.grad, "dgain")
    bench.equal(dshift, tshift.grad, "dshift")


@LEADS
@pytest.mark.parametrize(("rows", "N"), [(300, 48), (3, 1000)])
def test_layernorm(bench, lead, rows, N):
    """Many rows and long ones, in place, added."""
    dev = bench.dev
    x = bench.draw(*lead, rows, N)
    gain = bench.draw(*lead, N)
    shift = bench.draw(*lead, N)
    tx, tgain, tshift = bench.leaves(x, gain, shift)
    theirs = F.layer_norm(tx, (N,)) * tgain[..., None, :] + tshift[..., None, :]
    y, cache = norm.layernorm_forward(dev, x, gain, shift)
    dy = bench.draw(*y.shape)
    bench.backward(theirs, dy)
    bench.equal(y, theirs, "y")
    dgain = bench.full(gain.shape, 2)
    dshift = bench.full(gain.shape, 2)
    norm.layernorm_backward(dev, dy, cache, dgain, dshift, dx=dy, accumulate=True)
    bench.equal(dy, tx.grad, "dx in place")
    bench.equal(dgain - 2, tgain.grad, "dgain, added")
    bench.equal(dshift - 2, tshift.grad, "dshift, added")


# -- losses ----------------------------------------------------------------------------------------


@LEADS
@pytest.mark.parametrize(
    ("weighted", "total"), [(False, None), (True, None), (True, 11), (False, 90)]
)
@pytest.mark.parametrize("kind", loss.LOSSES)
def test_losses(bench, kind, weighted, total, lead):
    """Rows of weight 0, other norms, in the memory of the logits, a dL of every member."""
    dev = bench.dev
    z = 3 * bench.draw(*lead, 30, 17)
    target = bench.rng.integers(0, 17, (*lead, 30))
    weight = bench.rng.choice([0.0, 0.5, 1.0], (*lead, 30)).astype(bench.dtype)
    (t,) = bench.leaves(z)
    labels = torch.tensor(target)
    if kind == "mse":
        rows = ((t - F.one_hot(labels, 17)) ** 2).mean(-1)
    elif kind == "stablemax":
        s = torch.where(t < 0, 1 / (1 - t), t + 1)
        rows = -torch.log(s / s.sum(-1, keepdim=True)).gather(-1, labels[..., None])[..., 0]
    else:
        rows = -torch.log_softmax(t, -1).gather(-1, labels[..., None])[..., 0]
    counted = torch.tensor(weight) if weighted else torch.ones_like(rows)
    theirs = (rows * counted).sum(-1) / (total or counted.sum(-1))
    theirs.sum().backward()

    forward, backward = loss.LOSSES[kind]
    given = weight if weighted else None
    in_place = z.copy()
    value, cache = forward(dev, in_place, target, given, total, out=in_place)
    bench.equal(value, theirs, "loss")
    bench.equal(backward(dev, 1.0, cache, dlogits=in_place), t.grad, "dlogits in place")
    if lead:
        dloss = np.array([0.5, 2, -1], bench.dtype)
        _, cache = forward(dev, z, target, given, total)
        scaled = t.grad * torch.tensor(dloss)[:, None, None]
        bench.equal(backward(dev, dloss, cache), scaled, "dlogits of members")


# -- attention -------------------------------------------------------------------------------------

# T, heads, channels, positions of the queries
SEQUENCES = {
    "one short of a block": (63, 2, 8, None),
    "a block": (64, 2, 8, None),
    "one short of two": (127, 3, 6, None),
    "two blocks": (128, 1, 5, None),
    "three and one": (193, 5, 20, None),
    "many heads": (300, 8, 16, None),
    "every third query": (130, 2, 8, slice(1, None, 3)),
    "three queries": (90, 6, 12, [0, 7, 89]),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_causal_attention(bench, name):
    T, heads, C, select = SEQUENCES[name]
    dev = bench.dev
    queries = np.arange(T) if select is None else np.arange(T)[select]
    q = bench.draw(2, len(queries), C)
    k = bench.draw(2, T, C)
    v = bench.draw(2, T, C)
    leaves = bench.leaves(q, k, v)
    split = [x.reshape(2, -1, heads, C // heads).transpose(1, 2) for x in leaves]
    seen = torch.tensor(np.arange(T) <= queries[:, None])
    theirs = F.scaled_dot_product_attention(*split, attn_mask=seen)
    theirs = theirs.transpose(1, 2).reshape(2, -1, C)
    dy = bench.draw(*theirs.shape)
    bench.backward(theirs, dy)

    mask = attention.causal_mask_host(dev, queries, T)
    blocks = attention.causal_blocks(dev, T) if select is None else attention.WHOLE
    y, cache = attention.attention_forward(dev, q, k, v, heads, mask, blocks=blocks)
    gradients = [bench.full(x.shape, np.nan) for x in (q, k, v)]
    attention.attention_backward(dev, dy, cache, *gradients)
    bench.equal(y, theirs, "y")
    for letter, gradient, leaf in zip("qkv", gradients, leaves, strict=True):
        bench.equal(gradient, leaf.grad, f"d{letter}")


@pytest.mark.parametrize(
    ("T", "heads", "C"),
    [shape[:3] for shape in SEQUENCES.values() if shape[2] // shape[1] % 2 == 0],
)
@pytest.mark.parametrize("select", [slice(None), slice(1, None, 3), [0, 7, -1]], ids=str)
def test_rotary_positions(bench, T, heads, C, select):
    """Pairs of channels as complex numbers, which turn; back again the gradient of a rotation."""
    dev = bench.dev
    D = C // heads
    positions = np.arange(T)[select]
    x = bench.draw(2, len(positions), C)
    angles = positions[:, None] * 10000.0 ** (-np.arange(0, D, 2) / D)
    turned = torch.polar(torch.ones(angles.shape, dtype=torch.float64), torch.tensor(angles))
    pairs = torch.view_as_complex(torch.tensor(x).double().reshape(2, -1, heads, D // 2, 2))
    expected = torch.view_as_real(pairs * turned[:, None]).reshape(x.shape)

    table = attention.rotary_table_host(dev, T + 3, D, heads).at(slice(0, T)).at(positions)
    y, cache = attention.rotary_forward(dev, x, table)
    bench.equal(y, expected, "y")
    bench.equal(attention.rotary_backward(dev, y, cache), x, "turned back")
    attention.rotary_backward(dev, y, cache, y)
    bench.equal(y, x, "turned back in place")
