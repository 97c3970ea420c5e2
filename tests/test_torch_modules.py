"""Jacobian norms of PyTorch modules: exact Jacobians, the library's own chains, closed forms,
standard errors, AutoInit, and refusals that leave the module alone."""

import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tinygrok.criticality import torch_apjn, torch_autoinit
from tinygrok.criticality.autoinit import autoinit
from tinygrok.criticality.jacobian import Propagation, mean_and_error
from tinygrok.criticality.meanfield import MeanField
from tinygrok.engine.errors import InputError
from tinygrok.models.vision import deep_mlp

torch = pytest.importorskip("torch", reason="torch is not installed (the oracle extra)")
pytestmark = pytest.mark.torch
nn = torch.nn
EXAMPLE = Path(__file__).parent.parent / "examples" / "torch_module.py"


class Block(nn.Module):
    """W phi(norm(h)) + b + mu h, as deep_mlp's blocks."""

    def __init__(self, norm, activation, linear, mu=0.0):
        super().__init__()
        self.norm = norm
        self.activation = activation
        self.linear = linear
        self.mu = mu

    def forward(self, h):
        y = self.linear(self.activation(self.norm(h)))
        return y + self.mu * h if self.mu else y


def names(net):
    return [name for name, _ in net.named_children()]


def uneven():
    """Convolutions with BatchNorm, a reshape and layers of unequal widths, in training mode."""
    torch.manual_seed(0)
    first = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh())
    norm = nn.BatchNorm2d(2)
    second = nn.Sequential(nn.Conv2d(3, 2, 3, stride=2, padding=1), norm, nn.GELU())
    tokens = Block(nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 5))
    third = nn.Sequential(nn.Flatten(start_dim=2), tokens)
    fourth = nn.Sequential(nn.Flatten(), nn.Tanh(), nn.Linear(10, 4))
    last = nn.Sequential(nn.ReLU(), nn.Linear(4, 6))
    return nn.Sequential(first, second, third, fourth, last).double(), torch.randn(3, 2, 4, 4)


def exact(net, x):
    """J from every child of a Sequential to the next one, by the whole batch's Jacobian."""
    found = []
    for k, part in enumerate(net):
        state = {name: b.clone() for name, b in part.named_buffers()}

        def function(h, part=part, state=state):
            return torch.func.functional_call(part, {n: b.clone() for n, b in state.items()}, (h,))

        y = function(x)
        if k:
            jacobian = torch.autograd.functional.jacobian(function, x)
            assert jacobian.shape == (*y.shape, *x.shape)
            found.append((jacobian**2).sum().item() / y.numel())
        x = y.detach()
    return np.array(found)


def test_exact_jacobians():
    """Every J within four standard errors, which are small; BatchNorm couples the samples."""
    net, x = uneven()
    x = x.double()
    J, error = torch_apjn(net, x, names(net), probes=200, rng=np.random.default_rng(1))
    expected = exact(net, x)
    assert J.shape == error.shape == (4,)
    assert (abs(J - expected) < 4 * error).all(), (J, error, expected)
    assert (error < 0.1 * expected).all()
    net.eval()
    assert not np.allclose(exact(net, x)[0], expected[0], rtol=0.2)


@pytest.mark.slow
def test_jacrev_of_one_sample():
    net = nn.Sequential(nn.Linear(5, 6), nn.Sequential(nn.Tanh(), nn.Linear(6, 7))).double()
    x = torch.randn(1, 5, dtype=torch.float64)
    jacobian = torch.func.jacrev(net[1])(net[0](x)[0])
    J, error = torch_apjn(net, x, ["0", "1"], probes=300)
    assert abs(J[0] - (jacobian**2).sum().item() / 7) < 4 * error[0]


# -- the library's own chains ----------------------------------------------------------------------


def chain_and_twin(activation, norm="none", mu=0.0, sigma_w=1.3, sigma_b=0.2):
    """A deep_mlp with its weights, and the same as a module behind an Identity."""
    chain = deep_mlp(6, 9, 3, 4, activation, norm, mu)
    weights = chain.init(np.random.default_rng(0), sigma_w=sigma_w, sigma_b=sigma_b)
    phi = {"tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU}[activation]

    def linear(name):
        W = torch.tensor(weights[f"{name}.weight"].T)
        layer = nn.Linear(W.shape[1], W.shape[0]).double()
        with torch.no_grad():
            layer.weight.copy_(W)
            layer.bias.copy_(torch.tensor(weights[f"{name}.bias"]))
        return layer

    norms = {
        "none": nn.Identity,
        "pre": lambda: nn.LayerNorm(9),
        "batch": lambda: nn.BatchNorm1d(9),
    }
    hidden = [Block(norms[norm](), phi(), linear(f"hidden.{i}"), mu) for i in range(3)]
    last = Block(nn.Identity(), phi(), linear("readout"))
    return chain, weights, nn.Sequential(nn.Identity(), linear("input"), *hidden, last).double()


KINDS = [("relu", "none", 0.0), ("gelu", "pre", 0.9), ("tanh", "batch", 0.0)]


@pytest.mark.parametrize(("activation", "norm", "mu"), KINDS)
def test_the_same_probes_in_a_chain(host_dev, activation, norm, mu):
    """The same numbers as Propagation.chi, but for rounding."""
    chain, weights, net = chain_and_twin(activation, norm, mu)
    x = np.random.default_rng(1).standard_normal((5, 6))
    stages = chain.stages(host_dev, weights | chain.init_buffers())
    chi = Propagation(host_dev, stages, x).chi(np.random.default_rng(2), probes=6)
    J, error = torch_apjn(net, torch.tensor(x), names(net), 6, np.random.default_rng(2))
    expected = mean_and_error(chi)
    np.testing.assert_allclose(J, expected[0], rtol=1e-10)
    np.testing.assert_allclose(error, expected[1], rtol=1e-9)


@pytest.mark.parametrize(("activation", "norm", "mu"), KINDS)
def test_autoinit_of_a_chain(host_dev, activation, norm, mu):
    """The same weights after every step as tinygrok.autoinit, but for rounding."""
    chain, weights, net = chain_and_twin(activation, norm, mu)
    x = np.random.default_rng(1).standard_normal((5, 6))
    tuned, history = autoinit(
        host_dev, chain, weights, x, np.random.default_rng(2), steps=12, tune=("weight",)
    )
    J = torch_autoinit(net, torch.tensor(x), names(net), steps=12, rng=np.random.default_rng(2))
    np.testing.assert_allclose(J, history["apjn"], rtol=1e-8)
    for name, layer in (("hidden.1", net[3].linear), ("input", net[1]), ("readout", net[5].linear)):
        ours = tuned[f"{name}.weight"].T
        np.testing.assert_allclose(layer.weight.detach(), ours, rtol=1e-8)
        np.testing.assert_array_equal(layer.bias.detach(), weights[f"{name}.bias"])


# -- closed forms and errors -----------------------------------------------------------------------


def relu_layers(width, depth, variance):
    """Linear layers of weights Normal(0, variance/width), ReLU before all but the first."""
    torch.manual_seed(0)
    layers = [nn.Linear(width, width, bias=False, dtype=torch.float64)]
    for _ in range(depth):
        linear = nn.Linear(width, width, bias=False, dtype=torch.float64)
        layers.append(nn.Sequential(nn.ReLU(), linear))
    for layer in nn.Sequential(*layers).modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=(variance / width) ** 0.5)
    return nn.Sequential(*layers), torch.randn(8, width, dtype=torch.float64)


@pytest.mark.parametrize("variance", [2.0, 1.0])
def test_relu_is_critical_at_sigma_w_sqrt_2(variance):
    """J = sigma_w^2/2 at infinite width; of a layer as it is, sum_j |W_j|^2 [h_j > 0] / N."""
    net, x = relu_layers(200, 5, variance)
    J, error = torch_apjn(net, x, names(net), probes=100)
    assert MeanField("relu", variance).step(1.0)[1] == variance / 2
    np.testing.assert_allclose(J, variance / 2, rtol=0.1)
    h = net[0](x)
    for k in range(5):
        columns = (net[k + 1][1].weight ** 2).sum(dim=0)
        expected = ((h > 0) * columns).sum().item() / h.numel()
        assert abs(J[k] - expected) < 4 * error[k]
        h = net[k + 1](h)


@pytest.mark.slow
def test_standard_errors_are_those_of_repeats():
    """Squared errors are the variance of the mean, without bias: over 600 repeats of 6 probes."""
    net = nn.Sequential(nn.Linear(4, 5), nn.Sequential(nn.Tanh(), nn.Linear(5, 3))).double()
    x = torch.randn(2, 4, dtype=torch.float64)
    rng = np.random.default_rng(0)
    J, error = np.array([torch_apjn(net, x, ["0", "1"], 6, rng) for _ in range(600)])[..., 0].T
    (expected,) = exact(net, x)
    assert abs(J.mean() - expected) < 4 * J.std() / 600**0.5
    assert (error**2).mean() == pytest.approx(J.var(ddof=1), rel=0.2)


def test_the_input_dtypes_of_modules():
    """Tokens go in where an embedding begins; frozen parameters and float32 are fine."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(7, 30), nn.Linear(30, 30), nn.Linear(30, 30))
    tokens = torch.randint(0, 7, (4, 5))
    expected = torch_apjn(net, tokens, ["0", "2"])
    for p in net.parameters():
        p.requires_grad = False
    for found, one in zip(torch_apjn(net, tokens, ["0", "2"]), expected, strict=True):
        np.testing.assert_allclose(found, one, rtol=1e-5)
    with torch.no_grad():  # of the caller
        J, _ = torch_apjn(net, tokens, ["0", "1", ""])
    weights = net[2].weight @ net[1].weight
    assert expected[0][0] == pytest.approx((weights**2).sum().item() / 30, rel=0.1)
    assert J.shape == (2,)


# -- what stays as it is ---------------------------------------------------------------------------


def test_the_module_stays_as_it_is():
    net, x = uneven()
    before = copy.deepcopy(net.state_dict())
    torch_apjn(net, x.double(), names(net))
    with pytest.raises(InputError, match="refuses the batch"):
        torch_apjn(net, x[:, :1].double(), names(net))
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is None for p in net.parameters())
    assert not any(part._forward_hooks for part in net.modules())


def test_activations_in_place():
    """The output that is measured is that of the submodule, whatever the next one makes of it."""
    torch.manual_seed(0)
    first, second = nn.Linear(5, 5), nn.Linear(5, 5)
    x = torch.randn(4, 5)
    plain = nn.Sequential(first, nn.ReLU(), second)
    in_place = nn.Sequential(first, nn.ReLU(inplace=True), second)
    for blocks in (["0", "2"], ["0", "1"], ["0", "1", "2"]):
        expected = torch_apjn(plain, x, blocks)
        np.testing.assert_array_equal(torch_apjn(in_place, x, blocks), expected)


def test_only_weights_after_the_first_submodule_are_tuned():
    torch.manual_seed(0)
    shared = nn.Linear(20, 20)
    twice = Block(shared, nn.Tanh(), shared)  # J grows with the fourth power of its multiplier
    frozen = nn.Linear(20, 20).requires_grad_(False)
    both = nn.Sequential(nn.LayerNorm(20), frozen, nn.Linear(20, 20))
    net = nn.Sequential(nn.Linear(20, 20), twice, both, nn.Linear(20, 20))
    before = copy.deepcopy(net.state_dict())
    J = torch_autoinit(net, torch.randn(16, 20), ["0", "1", "2", "3"], steps=80, lr=0.03)
    assert abs(J[-1] - 1).max() < 0.3 < abs(J[0] - 1).max()
    changed = {n for n, w in net.state_dict().items() if not torch.equal(w, before[n])}
    assert changed == {"1.norm.weight", "1.linear.weight", "2.2.weight", "3.weight"}
    for name in changed:  # one multiplier each
        ratio = net.state_dict()[name] / before[name]
        torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-4, atol=0)


def test_a_weight_of_two_submodules_has_one_multiplier():
    torch.manual_seed(0)
    shared = nn.Linear(20, 20)
    nn.init.normal_(shared.weight, std=10)  # too large: every step is the longest that is allowed
    before = shared.weight.detach().clone()
    net = nn.Sequential(nn.Identity(), *(nn.Sequential(nn.ReLU(), shared) for _ in range(2)))
    torch_autoinit(net, torch.randn(16, 20), ["0", "1", "2"], steps=2)
    torch.testing.assert_close(shared.weight.detach(), before * np.exp(-0.6))


def test_batchnorm_hides_the_weights_before_it():
    """They have no effect on J, and stay; the running statistics stay too."""
    torch.manual_seed(0)
    part = nn.Sequential(nn.Linear(20, 20), nn.BatchNorm1d(20), nn.ReLU())
    net = nn.Sequential(nn.Linear(20, 20), part)
    before = copy.deepcopy(net.state_dict())
    torch_autoinit(net, torch.randn(64, 20), ["0", "1"], steps=10)
    ratio = part[0].weight / before["1.0.weight"]
    assert abs(ratio.mean().item() - 1) < 1e-3
    assert torch.equal(part[1].running_var, before["1.1.running_var"])


@pytest.mark.parametrize("training", [True, False])
def test_transformers_have_a_second_derivative(training):
    """J > 1 of pre-norm blocks falls with their weights. J is there for a caller without gradients
    too."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True, norm_first=True)
    net = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).train(training)
    x = torch.randn(4, 5, 16)
    blocks = ["layers.0", "layers.1", "layers.2"]
    with torch.no_grad():
        for name, w in net.named_parameters():
            w *= 3 if "linear" in name else 1
    with torch.inference_mode():
        before, _ = torch_apjn(net, x, blocks)
    J = torch_autoinit(net, x, blocks, steps=20)
    np.testing.assert_allclose(J[0], before, rtol=0.2)
    assert (before - 1 > 2 * abs(J[-1] - 1)).all()


# -- refusals --------------------------------------------------------------------------------------


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.left = nn.Linear(3, 3)
        self.right = nn.Linear(3, 3)
        self.whole = nn.Linear(3, 3)
        self.idle = nn.Linear(3, 3)
        self.counted = Counted()
        self.memory = nn.LSTM(3, 3)
        self.once = Once()

    def forward(self, x):
        left = self.left(x)
        right = self.right(x)
        self.memory(x)
        self.counted(x)
        return self.once(self.whole(self.whole(left + right)))


class Counted(nn.Module):
    def forward(self, x):
        return x.argmax(dim=-1)


class Once(nn.Module):
    """Distances, which PyTorch differentiates only once."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(3) + torch.ones(3, 3))

    def forward(self, x):
        return torch.cdist(x @ self.weight, torch.arange(6.0).reshape(2, 3))


X = torch.ones(2, 3)
REFUSED = [
    ((np.ones((2, 3)), ["left", "once"]), "the batch must be a tensor, not a ndarray"),
    ((X.long(), ["left", "once"]), "the module refuses the batch: "),
    ((torch.ones(2, 4), ["left", "once"]), "the module refuses the batch: "),
    ((X, ["left", "lost"]), "unknown submodule 'lost': choose left, right, whole, idle, "),
    ((X, "left"), "unknown submodule 'l': choose left"),
    ((X, ["left"]), "two submodules or more are needed, each named once"),
    ((X, ["left", "once", "left"]), "two submodules or more are needed, each named once"),
    ((X, ["once", "left"]), "named in the order in which they run: left, once"),
    ((X, ["left", "idle"]), "named in the order in which they run: left"),
    ((X, ["left", "whole"]), "'whole' runs more than once"),
    ((X, ["left", "right"]), "'right' does not depend on 'left'"),
    ((X, ["left", "memory"]), "the output of 'memory' is no array of floating-point numbers"),
    ((X, ["left", "counted"]), "the output of 'counted' is no array of floating-point numbers"),
    ((X * torch.inf, ["left", "once"]), "the Jacobians are not finite"),
    ((X, ["left", "once"], 1), "probes must be at least 2, not 1"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=[text for _, text in REFUSED])
def test_bad_input_takes_one_line(arguments, message):
    net = Branches()
    with pytest.raises(InputError) as refusal:
        torch_apjn(net, *arguments)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not any(part._forward_hooks for part in net.modules())


def test_what_cannot_be_tuned():
    net = Branches()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(InputError, match="no second derivative: the derivative for '_cdist_backw"):
        torch_autoinit(net, X, ["left", "once"])
    with pytest.raises(InputError, match="steps must be at least 0, not -1"):
        torch_autoinit(net, X, ["left", "once"], steps=-1)
    with pytest.raises(InputError, match="probes must be at least 1, not 0"):
        torch_autoinit(net, X, ["left", "once"], probes=0)
    dead = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    nn.init.zeros_(dead[1].weight)
    with pytest.raises(InputError, match="the Jacobian loss is inf in step 0"):
        torch_autoinit(dead, X, ["0", "1"])
    plain = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    with pytest.raises(InputError, match="no weights to tune in 1"):
        torch_autoinit(plain, X, ["0", "1"])
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])


def test_what_is_no_module():
    with pytest.raises(InputError, match=r"a torch\.nn\.Module is measured, not a function"):
        torch_apjn(names, X, ["0", "1"])


def test_without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    for function in (torch_apjn, torch_autoinit):
        with pytest.raises(InputError, match="PyTorch is not installed: pip install torch"):
            function(None, None, ["0", "1"])


@pytest.mark.slow
def test_torch_is_loaded_when_it_is_needed():
    code = "import sys, tinygrok as tg; tg.torch_apjn; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# -- the example -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_example(tmp_path):
    command = [sys.executable, EXAMPLE]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    _, *rows, whole = done.stdout.splitlines()
    assert len(rows) == 9
    for row in rows:
        _, before, after = row.replace(" +- ", "+-").rsplit(maxsplit=2)
        assert float(before.partition("+-")[0]) < 0.4
        assert abs(float(after.partition("+-")[0]) - 1) < 0.05
    assert whole.startswith("product")
    code = "import sys; sys.modules['torch'] = None; sys.argv = ['torch_module.py']\n"
    code += f"import runpy; runpy.run_path({str(EXAMPLE)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "torch_module.py: error: PyTorch is not installed: pip install torch\n"
