"""The PyTorch twin: the same operations, network and optimisers under autograd, as an independent
second opinion."""

import numpy as np
import pytest
from helpers import small_run

from tinygrok.audit.case import cpu_device
from tinygrok.engine.optim import SGD, AdamW, constant
from tinygrok.engine.params import Arena
from tinygrok.ops import activation, loss, norm

torch = pytest.importorskip("torch", reason="torch is not installed (the oracle extra)")
pytestmark = pytest.mark.torch
F = torch.nn.functional
DEV = cpu_device()


def leaf(x):
    return torch.tensor(np.asarray(x), requires_grad=np.asarray(x).dtype.kind == "f")


def close(ours, theirs, tol=1e-12):
    theirs = theirs.detach().numpy() if hasattr(theirs, "detach") else theirs
    np.testing.assert_allclose(ours, theirs, rtol=tol, atol=tol * max(1, np.abs(theirs).max()))


ACTIVATIONS = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "tanh": torch.tanh,
    "erf": torch.erf,
    "square": lambda x: x**2,
    "power3": lambda x: x**3,
    "identity": lambda x: 1.0 * x,
}


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activation_and_two_derivatives(kind):
    rng = np.random.default_rng(0)
    x, v = rng.standard_normal((2, 5, 4)) * 2
    t = leaf(x)
    y = ACTIVATIONS[kind](t)
    (first,) = torch.autograd.grad(y, t, torch.tensor(v), create_graph=True)
    close(activation.activation_forward(DEV, x, kind)[0], y)
    close(activation.activation_backward(DEV, v, (x, kind)), first)
    if kind not in ("relu", "identity"):
        (d1,) = torch.autograd.grad(ACTIVATIONS[kind](t).sum(), t, create_graph=True)
        (d2,) = torch.autograd.grad(d1.sum(), t)
        close(activation.activation_second(DEV, x, kind), d2)


@pytest.mark.parametrize("kind", ["mse", "cross_entropy", "stablemax"])
def test_losses(kind):
    rng = np.random.default_rng(1)
    z, target = rng.standard_normal((7, 5)) * 3, rng.integers(0, 5, 7)
    t = leaf(z)
    if kind == "mse":
        value = F.mse_loss(t, F.one_hot(torch.tensor(target), 5).double())
    elif kind == "stablemax":
        s = torch.where(t < 0, 1 / (1 - t), t + 1)
        value = F.nll_loss(torch.log(s / s.sum(1, keepdim=True)), torch.tensor(target))
    else:
        value = F.cross_entropy(t, torch.tensor(target))
    value.backward()
    forward, backward = loss.LOSSES[kind]
    ours, cache = forward(DEV, z, target)
    close(ours, value)
    close(backward(DEV, 1.0, cache), t.grad)


def test_norms():
    rng = np.random.default_rng(2)
    x, v = rng.standard_normal((2, 8, 5))
    gain, shift, mean = rng.standard_normal((3, 5))
    var = rng.uniform(0.5, 2, 5)
    for train in (True, False):
        t = [leaf(a) for a in (x, gain, shift)]
        running = torch.tensor(mean), torch.tensor(var)
        y = F.batch_norm(t[0], *running, t[1], t[2], train, 0.1, 1e-5)
        y.backward(torch.tensor(v))
        m, s, dgain, dshift = mean.copy(), var.copy(), np.empty(5), np.empty(5)
        ours, cache = norm.batchnorm_forward(DEV, x, gain, shift, m, s, train)
        dx = norm.batchnorm_backward(DEV, v, cache, dgain, dshift)
        for a, b in zip(
            (ours, dx, dgain, dshift, m, s),
            (y, t[0].grad, t[1].grad, t[2].grad, *running),
            strict=True,
        ):
            close(a, b)
    t = [leaf(a) for a in (x, gain, shift)]
    y = F.layer_norm(t[0], (5,), t[1], t[2])
    y.backward(torch.tensor(v))
    ours, cache = norm.layernorm_forward(DEV, x, gain, shift)
    dx = norm.layernorm_backward(DEV, v, cache, dgain, dshift)
    for a, b in zip((ours, dx, dgain, dshift), (y, t[0].grad, t[1].grad, t[2].grad), strict=True):
        close(a, b)


@pytest.mark.parametrize("clip", [None, 1.0, 100.0])
@pytest.mark.parametrize("which", ["adamw", "sgd"])
def test_optimisers(which, clip):
    rng = np.random.default_rng(3)
    params, grads = Arena(DEV, {"w": (4, 3)}), Arena(DEV, {"w": (4, 3)})
    params.load({"w": rng.standard_normal((4, 3))})
    twin = torch.nn.Parameter(torch.tensor(params.to_host()["w"]))
    if which == "adamw":
        ours = AdamW(
            DEV,
            params,
            grads,
            lr=0.03,
            betas=(0.9, 0.98),
            weight_decay=2.0,
            schedule=constant,
            clip=clip,
        )
        theirs = torch.optim.AdamW([twin], lr=0.03, betas=(0.9, 0.98), eps=1e-8, weight_decay=2.0)
    else:
        ours = SGD(DEV, params, grads, lr=0.03, momentum=0.9, weight_decay=0.1, clip=clip)
        theirs = torch.optim.SGD([twin], lr=0.03, momentum=0.9, weight_decay=0.1)
    for t in range(1, 11):
        grads.load({"w": rng.standard_normal((4, 3))})
        twin.grad = torch.tensor(grads.to_host()["w"])
        if clip is not None:
            torch.nn.utils.clip_grad_norm_([twin], clip)
        ours.step(t)
        theirs.step()
        close(params["w"], twin)


class Twin(torch.nn.Module):
    """The papers' network on one-hot inputs, as their code has it."""

    def __init__(self, weights, terms):
        super().__init__()
        self.terms = terms
        self.first = torch.nn.Parameter(torch.tensor(np.concatenate(weights["U"])))  # (S p, N)
        self.second = torch.nn.Parameter(torch.tensor(weights["W"]))

    def forward(self, onehot):
        return (onehot @ self.first) ** self.terms @ self.second


@pytest.mark.parametrize(("dtype", "tol"), [("float64", 1e-10), ("float32", 1e-5)])
@pytest.mark.parametrize("terms", [2, 3, 4])
@pytest.mark.parametrize("kind", ["mse", "cross_entropy"])
def test_training_trajectory(kind, terms, dtype, tol):
    """Loss and gradients of the first step, and the weights after five AdamW steps."""
    p = {2: 11, 3: 5, 4: 3}[terms]
    dev = cpu_device(dtype)
    run = small_run(dev, p=p, terms=terms, loss=kind)
    twin = Twin(run.params.to_host(), terms)
    inputs, target = run.data[0]
    target = torch.tensor(target)
    onehot = torch.cat([F.one_hot(torch.tensor(n), p) for n in inputs], dim=1).to(twin.first.dtype)
    optimizer = torch.optim.AdamW(twin.parameters(), lr=0.01, betas=(0.9, 0.98), weight_decay=1.0)
    for step in range(5):
        optimizer.zero_grad()
        z = twin(onehot)
        value = (
            F.mse_loss(z, F.one_hot(target, p).to(z.dtype))
            if kind == "mse"
            else F.cross_entropy(z, target)
        )
        value.backward()
        close(run.step(), value, tol)
        if step == 0:
            close(run.grads.to_host()["U"].reshape(-1, 12), twin.first.grad, tol)
            close(run.grads.to_host()["W"], twin.second.grad, tol)
        optimizer.step()
    # Adam divides by tiny second moments: float32 differences grow
    scale = 1 if dtype == "float64" else 30
    close(run.params.to_host()["W"], twin.second, scale * tol)
    close(run.params.to_host()["U"].reshape(-1, 12), twin.first, scale * tol)
