"""ViT and ResNet: their shapes, what they refuse, and the same networks written in PyTorch."""

import numpy as np
import pytest
from test_chain import B, probes_of, tensors

from tinygrok.criticality.autoinit import jacobian_loss
from tinygrok.engine.errors import InputError
from tinygrok.models.protocol import TRAINING
from tinygrok.models.vision import resnet, vit

IMAGE = (5, 6, 3)  # odd and even sides
RESNETS = {
    norm: (IMAGE, resnet(IMAGE, 4, 14, 2, norm, "gelu", 0.8))
    for norm in ("none", "layernorm", "batchnorm")
}
NETWORKS = RESNETS | {
    "vit": ((4, 6, 2), vit((4, 6, 2), 4, 2, 6, 2, 3, "tanh", 0.7)),
    "vit, one head": ((4, 4, 1), vit((4, 4, 1), 4, 4, 3, 1, 1, "gelu", 1.0)),
}


# -- shapes ----------------------------------------------------------------------------------------


def test_the_layers_of_a_resnet():
    """6 n + 2 layers: convolutions and the readout; two halvings, two doublings of the channels."""
    for depth in (8, 20, 110):
        net = resnet((32, 32, 3), 10, depth)
        kernels = [s for n, s in net.shapes.items() if n.endswith("weight")]
        assert len(kernels) == depth
        assert len(net.blocks) == (depth - 2) // 2 + 2
        assert {s[-1] for s in kernels} == {16, 32, 64, 10}
    assert net.shapes["blocks.53.norm.gain"] == (8 * 8 * 64,)
    assert net.shapes["blocks.36.way.gain"] == (8 * 8 * 32,)


def test_sizes_of_a_published_resnet():
    """0.27 and 1.7 million parameters of ResNet-20 and -110 (He et al., arXiv 1512.03385, table 6);
    here also the biases of convolutions, and norms on the way around a block."""
    small, large = (resnet((32, 32, 3), 10, depth, norm="batchnorm").size for depth in (20, 110))
    assert 0.265e6 < small < 0.275e6
    assert 1.7e6 < large < 1.75e6


def test_the_tokens_of_a_vit():
    """16 patches of 8 x 8 pixels, and the one that is read; its start is the first position."""
    net = vit((32, 32, 3), 10, width=16, depth=1, heads=4)
    assert net.shapes["input.positions.shift"] == (17, 16)
    assert net.shapes["blocks.0.tokens.in.weight"] == (16, 48)
    assert "blocks.0.tokens.in.bias" not in net.shapes
    assert net.shapes["blocks.0.channels.in.weight"] == (16, 64)
    assert "input.positions.shift" in net.no_decay
    weights = net.init(np.random.default_rng(0), 7.0, 3.0)
    assert abs(weights["input.positions.shift"].std() - 1) < 0.1


def test_attention_does_not_know_the_order(host_dev):
    """But for positions and the first token: patches that change places change nothing."""
    net = vit((4, 4, 1), 3, 2, 6, 2, 2, "gelu")
    w = tensors(net)
    w["input.positions.shift"][1:] = 0.3
    x = np.random.default_rng(1).standard_normal((B, 4, 4, 1))
    rolled = np.roll(x, 2, axis=1)
    found = [net.forward(host_dev, w, images)[0] for images in (x, rolled)]
    np.testing.assert_allclose(*found, rtol=1e-12, atol=1e-13)
    w["input.positions.shift"][2, 0] = 1.0
    found = [net.forward(host_dev, w, images)[0] for images in (x, rolled)]
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_without_a_branch_the_way_is_left(host_dev):
    """Kernels of zeros: a block at half the size hands on every second pixel, and zeros."""
    shape, net = NETWORKS["none"]
    w = {n: a * ("conv" in n or not n.startswith("blocks")) for n, a in tensors(net).items()}
    w |= net.init_buffers()
    stages = net.stages(host_dev, w)
    x, _ = stages[0].forward(np.random.default_rng(1).standard_normal((B, *shape)))
    for stage in stages[1:3]:
        x, _ = stage.forward(x)
    y, _ = stages[3].forward(x)
    assert y.shape == (B, 3, 3, 4)
    np.testing.assert_allclose(y[..., :2], 0.8 * x[:, ::2, ::2], rtol=1e-14)
    assert not y[..., 2:].any()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: resnet(IMAGE, 4, 2), "6 n \\+ 2 layers"),
        (lambda: resnet(IMAGE, 4, 21), "6 n \\+ 2 layers, n = 1, 2, ..., not 21"),
        (lambda: resnet(IMAGE, 4, 20, norm="pre"), "unknown norm 'pre'"),
        (lambda: vit((4, 5, 1), 4, 2), "4 x 5 pixels"),
        (lambda: vit((4, 4, 1), 4, 2, 6, 1, 4), "4 heads do not share 6 channels"),
        (lambda: vit((4, 4, 1), 4, 2, 6, 1, 2, "selu"), "unknown activation"),
    ],
)
def test_what_is_refused(build, message):
    with pytest.raises(InputError, match=message):
        build()


# -- the same networks in PyTorch ------------------------------------------------------------------


def torch_resnet(torch, w, norm):
    """The blocks on images (B, C, H, W), by functions of torch.nn."""
    F = torch.nn.functional

    def conv(x, name, stride=1):
        kernel = w[f"{name}.weight"].permute(3, 2, 0, 1)
        return F.conv2d(x, kernel, w[f"{name}.bias"], stride, 1)

    def normal(x, name):
        if norm == "none":
            return x
        gain, shift = w[f"{name}.gain"], w[f"{name}.shift"]
        if norm == "batchnorm":
            return F.batch_norm(x, None, None, gain, shift, True)
        _, C, H, W = x.shape
        gain, shift = (a.reshape(H, W, C).permute(2, 0, 1) for a in (gain, shift))
        return F.layer_norm(x, (C, H, W), gain, shift)

    def block(i):
        name, half = f"blocks.{i}", i in (2, 4)

        def run(x):
            y = conv(F.gelu(normal(x, f"{name}.norm")), f"{name}.in", 2 if half else 1)
            y = conv(F.gelu(normal(y, f"{name}.hidden")), f"{name}.out")
            if half:
                x = normal(x[:, :, ::2, ::2], f"{name}.way")
                x = torch.cat([x, torch.zeros_like(x)], dim=1)
            return y + w[f"{name}.mu"] * x

        return run

    def readout(x):
        return F.linear(x.mean(dim=(2, 3)), w["readout.weight"].T, w["readout.bias"])

    def first(x):
        return F.gelu(normal(conv(x, "input"), "input.norm"))

    return [first, *map(block, range(6)), readout]


def torch_vit(torch, w, net, heads, act):
    """The blocks on tokens (B, T, C), by torch's own multi-head attention."""
    F = torch.nn.functional
    act = {"tanh": torch.tanh, "gelu": F.gelu}[act]

    def normal(x, name):
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.gain"], w[f"{name}.shift"])

    def first(x):
        kernel = w["input.weight"].permute(3, 2, 0, 1)
        x = F.conv2d(x, kernel, w["input.bias"], kernel.shape[-1]).flatten(2).transpose(1, 2)
        token = torch.zeros_like(x[:, :1])
        return torch.cat([token, x], dim=1) + w["input.positions.shift"]

    def attention(name):
        def run(x):
            z = normal(x, f"{name}.norm").transpose(0, 1)
            weights = w[f"{name}.in.weight"].T, None, None, None, False, 0.0
            out = w[f"{name}.out.weight"].T, w[f"{name}.out.bias"]
            y, _ = F.multi_head_attention_forward(z, z, z, z.shape[-1], heads, *weights, *out)
            return y.transpose(0, 1) + w[f"{name}.mu"] * x

        return run

    def mlp(name):
        def run(x):
            z = normal(x, f"{name}.norm") @ w[f"{name}.in.weight"] + w[f"{name}.in.bias"]
            y = act(z) @ w[f"{name}.out.weight"] + w[f"{name}.out.bias"]
            return y + w[f"{name}.mu"] * x

        return run

    def readout(x):
        return normal(x[:, 0], "final") @ w["readout.weight"] + w["readout.bias"]

    names = [name for name, _ in net.blocks[1:-1]]
    halves = [(attention if "tokens" in name else mlp)(name) for name in names]
    return [first, *halves, readout]


def twin(torch, which, w):
    net = NETWORKS[which][1]
    if which.startswith("vit"):
        return torch_vit(torch, w, net, *((1, "gelu") if "one" in which else (3, "tanh")))
    return torch_resnet(torch, w, which)


def first_channels(a):
    """(B, H, W, C) -> (B, C, H, W)"""
    return np.moveaxis(a, -1, 1) if a.ndim == 4 else a


@pytest.mark.torch
@pytest.mark.parametrize("which", NETWORKS)
def test_gradients_equal_autograd(host_dev, which):
    torch = pytest.importorskip("torch", reason="torch is not installed (the oracle extra)")
    shape, net = NETWORKS[which]
    x = np.random.default_rng(1).standard_normal((B, *shape))
    w = tensors(net)
    t = {n: torch.tensor(a, requires_grad=n in net.shapes) for n, a in w.items()}
    z = torch.tensor(first_channels(x))
    for run in twin(torch, which, t):
        z = run(z)
    dz = np.random.default_rng(2).standard_normal(z.shape)
    names = list(net.shapes)
    expected = torch.autograd.grad(z, [t[n] for n in names], torch.tensor(dz))
    y, tape = net.forward(host_dev, w, x, TRAINING)
    g = {n: np.full(net.shapes[n], np.nan) for n in names}
    net.backward(host_dev, dz, tape, g)
    np.testing.assert_allclose(y, z.detach(), rtol=1e-11, atol=1e-12)
    for name, e in zip(names, expected, strict=True):
        np.testing.assert_allclose(g[name], e, rtol=1e-9, atol=1e-11, err_msg=name)


@pytest.mark.torch
@pytest.mark.parametrize("which", NETWORKS)
def test_second_order_equals_double_backward(host_dev, which):
    """J of every block, and the gradient of the Jacobian log loss by everything that can be tuned,
    strengths mu included."""
    torch = pytest.importorskip("torch", reason="torch is not installed (the oracle extra)")
    shape, net = NETWORKS[which]
    x = np.random.default_rng(1).standard_normal((B, *shape))
    w, probes = tensors(net), probes_of(host_dev)
    names = [n for n in w if not n.endswith((".mean", ".var"))]
    g = {n: np.full(w[n].shape, np.nan) for n in names}
    ours, ourJ = jacobian_loss(host_dev, net, w, x, probes, g)
    t = {n: torch.tensor(a, requires_grad=True) for n, a in w.items()}
    h, norms = torch.tensor(first_channels(x), requires_grad=True), []
    p = x
    for i, (run, stage) in enumerate(
        zip(twin(torch, which, t), net.stages(host_dev, w), strict=True)
    ):
        y = run(h)
        p, _ = stage.forward(p)
        draws = [torch.tensor(first_channels(v)) for v in probes(i, p.shape)]
        u = [torch.autograd.grad(y, h, v, create_graph=True)[0] for v in draws]
        norms.append(sum((a * a).sum() for a in u) / (B * len(u)))
        h = y
    J = torch.stack(norms)
    value = 0.5 * (torch.log(J) ** 2).sum()
    expected = torch.autograd.grad(value, [t[n] for n in names], allow_unused=True)
    np.testing.assert_allclose(ours, value.item(), rtol=1e-10)
    np.testing.assert_allclose(ourJ, J.detach(), rtol=1e-11)
    for name, e in zip(names, expected, strict=True):
        e = np.zeros(w[name].shape) if e is None else e.numpy()
        size = max(1, np.abs(e).max())
        np.testing.assert_allclose(g[name], e, rtol=1e-8, atol=1e-10 * size, err_msg=name)
