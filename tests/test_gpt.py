"""The decoder: parameters, devices, shards, recomputed activations, generation, weights of PyTorch,
and a PyTorch twin."""

import math

import fakecupy
import numpy as np
import pytest

from tinygrok.audit.case import cpu_device
from tinygrok.engine.errors import InputError
from tinygrok.models.gpt import GPT, Tokens
from tinygrok.models.interop import from_torch_state_dict, to_torch_state_dict
from tinygrok.models.protocol import Mode
from tinygrok.ops.loss import cross_entropy_backward, cross_entropy_forward

V, T, B = 11, 13, 4
MODELS = {
    "rotary": lambda **o: GPT.in_context(V, 16, 3, 4, 20, **o),
    "learned": lambda **o: GPT.numbers(V, 16, 2, 2, 20, **o),
    "digits": lambda **o: GPT.base_b(V, 16, 2, 2, 6, 3, **o),
    "untied": lambda **o: GPT.in_context(V, 16, 1, 2, 20, tied=False, **o),
}
POSITIONS = {"all": None, "every third": slice(1, None, 3), "some": [2, 3, 7]}
each_model = pytest.mark.parametrize("kind", MODELS)
each_position = pytest.mark.parametrize("positions", POSITIONS.values(), ids=POSITIONS)


def draw(model, lead=(), seed=0, rows=B, own=False):
    """Weights of visible size on the host, tokens, and a cotangent for logits at all positions."""
    rng = np.random.default_rng(seed)
    w = {
        n: (n.endswith("gain")) + 0.3 * rng.standard_normal((*lead, *s))
        for n, s in model.shapes.items()
    }
    tokens = rng.integers(0, V, (*(lead if own else ()), rows, T))
    return w, tokens, rng.standard_normal((*lead, rows, T, V))


def step(dev, model, w, tokens, dz, positions=None, buffer=None, g=None, **options):
    """(logits, gradients, tape), on the device; g: add to it"""
    batch = Tokens(dev, tokens, V, positions)
    z, tape = model.forward(dev, w, batch, Mode(buffer=buffer), **options)
    picked = dz[..., slice(None) if positions is None else positions, :]
    cotangent, z = dev.to_device(picked.reshape(z.shape)), z.copy()
    into = {n: dev.to_device(np.full(x.shape, np.nan)) for n, x in w.items()} if g is None else g
    model.backward(dev, cotangent, tape, into, accumulate=g is not None)
    return z, into, tape


def on(dev, w):
    return {n: dev.to_device(x) for n, x in w.items()}


def close(ours, theirs, tol, what=""):
    np.testing.assert_allclose(
        ours, theirs, rtol=tol, atol=tol * max(1e-3, np.abs(theirs).max()), err_msg=what
    )


# -- parameters ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "count"),
    [
        (GPT.in_context(depth=2), 6_320_640),
        (GPT.in_context(depth=4), 12_616_192),
        (GPT.in_context(depth=6), 18_911_744),
        (GPT.numbers(), 8_849_664),
        (GPT.numbers(2457, depth=4, heads=6), 30_402_048),
        (GPT.base_b(), 25_985_024),
        (GPT.base_b(depth=4, numbers=256, digits=2), 50_913_280),
        (GPT.base_b(depth=6, numbers=256, digits=2), 76_105_728),
        (GPT(7, 64, 4, 2, 35), 198_208),
        (GPT(7, 64, 2, 2, 35), 99_392),
        (GPT.numbers(64, 64, context=32), 55_488),
    ],
    ids=lambda x: repr(x) if isinstance(x, GPT) else "",
)
def test_parameter_counts(model, count):
    assert model.size == count
    assert f"{count:,}" in repr(model)
    assert sum(math.prod(model.shapes[n]) for n in model.no_decay) == sum(
        s[0] for s in model.shapes.values() if len(s) == 1
    )


def test_initialisation():
    """The scale of every matrix in both papers' code; gains 1, shifts and biases 0."""
    expected = {
        GPT.in_context(400, 64, 8, 4, 32): {"attn.out": 0.02, "mlp.out": 0.02 / 4},
        GPT.numbers(400, 64, 8, 4, 320): {"attn.out": 0.02 / 4, "mlp.out": 0.02 / 4},
        GPT.base_b(400, 64, 8, 4, 320, 32): {"attn.out": 0.02 / 4, "mlp.out": 0.02 / 4},
        GPT.in_context(400, 64, 8, 4, 32, tied=False): {"head": 0.02 / 8, "mlp.out": 0.02 / 4},
    }
    for model, scales in expected.items():
        for name, x in model.init(np.random.default_rng(1)).items():
            assert x.shape == model.shapes[name]
            if name in model.no_decay:
                assert (x == (1 if name.endswith("gain") else 0)).all()
                continue
            std = next((s for part, s in scales.items() if part in name), 0.02)
            assert abs(x.std() / std - 1) < 6 / math.sqrt(2 * x.size), name
            assert abs(x.mean()) < 5 * std / math.sqrt(x.size), name
    wide = GPT(7, 64, 1, 2, 8).init(np.random.default_rng(2), std=0.0566)
    assert abs(wide["blocks.0.attn.qkv.weight"].std() / 0.0566 - 1) < 0.03


# -- the same numbers everywhere -------------------------------------------------------------------


@each_position
@pytest.mark.parametrize("lead", [(), (2,)], ids=["alone", "ensemble"])
@each_model
def test_same_numbers_on_every_device(dev, kind, lead, positions):
    model = MODELS[kind](activation="gelu_tanh")  # smooth: float32 must not flip a ReLU
    w, tokens, dz = draw(model, lead, own=bool(lead))
    z, g, tape = step(dev, model, on(dev, w), tokens, dz, positions)
    host = cpu_device()
    expected, eg, etape = step(host, model, w, tokens, dz, positions)
    tol = 5e-5 if dev.dtype == np.float32 else 1e-11
    close(dev.to_host(z), expected, tol)
    for name, x in g.items():
        close(dev.to_host(x), eg[name], tol, name)
    for name in ("blocks.0.attn.pattern", "blocks.0.attn.k", "blocks.0.attn.out", "blocks.0.ln2"):
        close(dev.to_host(tape[name]), etape[name], tol, name)
    for e in range(lead[0] if lead else 0):  # a member is the network alone
        alone, ag, _ = step(
            host, model, {n: x[e] for n, x in w.items()}, tokens[e], dz[e], positions
        )
        close(expected[e], alone, 1e-12)
        for name, x in ag.items():
            close(eg[name][e], x, 1e-11, name)


@pytest.mark.skipif(fakecupy.COMPILER is None, reason="no C++ compiler for the CUDA bodies")
@each_model
def test_a_step_does_not_wait_for_the_device(kind):
    dev, model = fakecupy.fake_device("float32"), MODELS[kind]()
    w, tokens, _ = draw(model, (2,))
    w, target = on(dev, w), dev.to_device(tokens[:, 1::3].reshape(-1))
    batch, g = (
        Tokens(dev, tokens, V, slice(0, -1, 3)),
        {n: dev.empty(x.shape) for n, x in w.items()},
    )
    for _ in range(2):
        with fakecupy.hot("float32"):
            z, tape = model.forward(dev, w, batch, Mode(buffer=dev.workspace.get))
            _, cache = cross_entropy_forward(dev, z, target, out=z)
            model.backward(dev, cross_entropy_backward(dev, 1.0, cache, dlogits=z), tape, g)
    assert all(np.isfinite(dev.to_host(x)).all() for x in g.values())


@each_position
@each_model
def test_positions_pick_rows_of_all_logits(kind, positions):
    """Logits at some positions are those rows of all logits, and so are the gradients of a loss
    that reads only them."""
    dev, model = cpu_device(), MODELS[kind]()
    w, tokens, dz = draw(model)
    chosen = np.zeros(T, dtype=bool)
    chosen[slice(None) if positions is None else positions] = True
    z, g, _ = step(dev, model, w, tokens, dz, positions)
    every, eg, _ = step(dev, model, w, tokens, dz * chosen[:, None])
    close(z, every.reshape(B, T, V)[:, chosen].reshape(-1, V), 1e-12)
    for name, x in g.items():
        close(x, eg[name], 1e-11, name)


@each_model
def test_the_future_is_not_read(kind):
    dev, model = cpu_device(), MODELS[kind]()
    w, tokens, dz = draw(model)
    z = step(dev, model, w, tokens, dz)[0].reshape(B, T, V)
    tokens[:, 8:] = (tokens[:, 8:] + 1) % V
    changed = step(dev, model, w, tokens, dz)[0].reshape(B, T, V)
    np.testing.assert_array_equal(z[:, :8], changed[:, :8])
    assert (np.abs(z[:, 8:] - changed[:, 8:]).max(axis=(0, 2)) > 1e-6).all()


@pytest.mark.slow
@each_position
@each_model
def test_shards_add_up(dev, kind, positions):
    """Rows of a batch in two shards of unequal size: logits of the whole, gradients that add to its
    gradient; buffers of a workspace, used twice, leave no trace."""
    model = MODELS[kind](activation="gelu")
    w, tokens, dz = draw(model)
    w = on(dev, w)
    z, g, _ = step(dev, model, w, tokens, dz, positions)
    tol = 5e-5 if dev.dtype == np.float32 else 1e-11
    for _ in range(2):
        first, sum_, _ = step(dev, model, w, tokens[:3], dz[:3], positions, dev.workspace.get)
        second, sum_, _ = step(
            dev, model, w, tokens[3:], dz[3:], positions, dev.workspace.get, g=sum_
        )
        close(np.concatenate([dev.to_host(first), dev.to_host(second)]), dev.to_host(z), tol)
        for name, x in g.items():
            close(dev.to_host(sum_[name]), dev.to_host(x), tol, name)


@each_position
@each_model
def test_recomputed_activations_give_the_same_bits(dev, kind, positions):
    w, tokens, dz = draw(MODELS[kind]())
    w = on(dev, w)
    z, g, tape = step(dev, MODELS[kind](), w, tokens, dz, positions)
    z2, g2, tape2 = step(
        dev, MODELS[kind](recompute=True), w, tokens, dz, positions, dev.workspace.get
    )
    np.testing.assert_array_equal(dev.to_host(z), dev.to_host(z2))
    for name, x in g.items():
        np.testing.assert_array_equal(dev.to_host(x), dev.to_host(g2[name]), err_msg=name)
    assert "blocks.0.mlp.hidden" in tape
    assert "blocks.0.mlp.hidden" not in tape2


def test_the_tape_is_the_network(dev):
    """Recorded residual streams are sums of what the sublayers write; the pattern times the values
    is the heads' output."""
    model = MODELS["rotary"](recompute=True)
    w, tokens, dz = draw(model)
    w = on(dev, w)
    tape = model.forward(dev, w, Tokens(dev, tokens, V, POSITIONS["every third"]), record=True)[1]

    def host(name):
        return dev.to_host(tape[name])

    def weight(name):
        return dev.to_host(w[name])

    tol = 5e-5 if dev.dtype == np.float32 else 1e-12
    for i in range(3):
        b, Tq = f"blocks.{i}.", 4 if i == 2 else T
        pattern, v, out = host(b + "attn.pattern"), host(b + "attn.v"), host(b + "attn.out")
        assert pattern.shape == (B, 4, Tq, T)
        assert v.shape == (B, T, 16)
        assert out.shape == (B, Tq, 16)
        for h in range(4):
            close(out[..., 4 * h : 4 * h + 4], pattern[:, h] @ v[..., 4 * h : 4 * h + 4], tol)
        before = (
            host(b + "in")
            .reshape(B, T, 16)[:, slice(None) if i < 2 else slice(1, None, 3)]
            .reshape(-1, 16)
        )
        close(host(b + "mid"), before + out.reshape(-1, 16) @ weight(b + "attn.out.weight"), tol)
        close(
            host(b + "end"),
            host(b + "mid") + host(b + "mlp.hidden") @ weight(b + "mlp.out.weight"),
            tol,
        )
        if i < 2:
            close(host(f"blocks.{i + 1}.in"), host(b + "end"), 0)
    close(host("logits"), host("final") @ weight("embed.token").T, tol)


# -- generation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("lead", [(), (2,)], ids=["alone", "ensemble"])
@each_model
def test_generation_equals_the_full_forward(dev, kind, lead):
    model = MODELS[kind]()
    w, tokens, _ = draw(model, lead, own=bool(lead))
    prompt, w = tokens[..., :5], on(dev, w)
    made = dev.to_host(model.generate(dev, w, prompt, 8))
    assert made.shape == (*lead, B, 8)
    assert made.dtype == np.int64
    sequence = np.concatenate([prompt, made], axis=-1)[..., :-1]
    z = dev.to_host(model.forward(dev, w, Tokens(dev, sequence, V, slice(4, None)))[0]).reshape(
        *lead, B, 8, V
    )
    np.testing.assert_array_equal(z.argmax(axis=-1), made)


def test_generation_waits_for_nothing():
    dev, model = fakecupy.fake_device("float32"), MODELS["rotary"]()
    w, tokens, _ = draw(model)
    w = on(dev, w)
    with fakecupy.hot("float32"):
        made = model.generate(dev, w, tokens, 4)
    assert (dev.to_host(made) < V).all()


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GPT(V, 10, 2, 4, 8), "heads"),
        (lambda: GPT(V, 12, 2, 4, 8), "even"),
        (lambda: GPT(0, 8, 2, 2, 8), "vocab"),
        (lambda: GPT(V, 8, 2, 2, 8, positions="sine"), "learned"),
        (lambda: GPT(V, 8, 2, 2, 8, activation="rulu"), "relu"),
        (lambda: Tokens(cpu_device(), np.array([[0, V]]), V), "0..10"),
        (lambda: Tokens(cpu_device(), np.arange(3), V), "shape"),
        (lambda: Tokens(cpu_device(), np.zeros((1, 4), int), V, [4]), "out of bounds"),
        (lambda: Tokens(cpu_device(), np.zeros((1, 4), int), V, [2, 1]), "increasing"),
        (lambda: Tokens(cpu_device(), np.zeros((1, 4), int), V, slice(4, None)), "increasing"),
        (
            lambda: step(
                cpu_device(),
                MODELS["rotary"](),
                *draw(GPT(V, 16, 3, 4, 8))[:1],
                np.zeros((1, 21), int),
                None,
            ),
            "context",
        ),
        (
            lambda: MODELS["learned"]().generate(
                cpu_device(), draw(MODELS["learned"]())[0], np.zeros((1, 5), int), 17
            ),
            "fit",
        ),
    ],
)
def test_refusals(make, message):
    with pytest.raises(InputError, match=message):
        make()


# -- the twin in PyTorch, with the parameter names of the authors' classes -------------------------


def twin(torch, model, dtype):
    """The same network under autograd, written for its own: F.layer_norm,
    F.scaled_dot_product_attention, nn.Linear."""
    nn, F = torch.nn, torch.nn.functional
    C, H, L, rotary = model.width, model.heads, model.depth, model.positions == "rotary"
    D = C // H

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.ln_1, self.ln_2 = (nn.LayerNorm(C, bias=model.shift) for _ in range(2))
            self.attn, self.mlp = nn.Module(), nn.Module()
            qkv, out = nn.Linear(C, 3 * C, bias=model.bias), nn.Linear(C, C, bias=model.bias)
            if rotary:
                self.attn.to_qkv, self.attn.o = qkv, out
                self.attn.rotary_emb = nn.Module()
                f = 1 / 10000 ** (torch.arange(0, D, 2).float() / D)
                self.attn.rotary_emb.freqs = nn.Parameter(f, requires_grad=False)
            else:
                self.attn.c_attn, self.attn.c_proj = qkv, out
            self.mlp.c_fc, self.mlp.c_proj = (
                nn.Linear(C, 4 * C, bias=model.bias),
                nn.Linear(4 * C, C, bias=model.bias),
            )

        def turn(self, x):
            freqs = 10000.0 ** (-torch.arange(0, D, 2, dtype=torch.float64) / D)
            angle = torch.polar(
                torch.ones(1, dtype=torch.float64), torch.arange(x.shape[-2])[:, None] * freqs
            )
            pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], D // 2, 2))
            return torch.view_as_real(pairs * angle.to(pairs.dtype)).flatten(-2)

        def forward(self, h):
            qkv, out = (
                (self.attn.to_qkv, self.attn.o) if rotary else (self.attn.c_attn, self.attn.c_proj)
            )
            q, k, v = (
                a.unflatten(-1, (H, D)).transpose(1, 2) for a in qkv(self.ln_1(h)).chunk(3, dim=-1)
            )
            if rotary:
                q, k = self.turn(q), self.turn(k)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            h = h + out(y.transpose(1, 2).flatten(-2))
            return h + self.mlp.c_proj(getattr(F, model.activation)(self.mlp.c_fc(self.ln_2(h))))

    class Twin(nn.Module):
        def __init__(self):
            super().__init__()
            parts = {
                "wte": nn.Embedding(model.vocab, C),
                "h": nn.ModuleList(Block() for _ in range(L)),
            }
            if not rotary:
                parts["wpe"] = nn.Embedding(-(-model.context // model.digits), C)
            if model.positions == "digits":
                parts["abacus"] = nn.Embedding(model.digits, C)
            self.transformer = nn.ModuleDict({**parts, "ln_f": nn.LayerNorm(C, bias=model.shift)})
            self.lm_head = nn.Linear(C, model.vocab, bias=False)
            if model.tied:
                self.lm_head.weight = self.transformer["wte"].weight

        def forward(self, tokens):
            t, parts = torch.arange(tokens.shape[1]), self.transformer
            h = parts["wte"](tokens)
            if not rotary:
                h = h + parts["wpe"](t // model.digits)
            if "abacus" in parts:
                h = h + parts["abacus"](t % model.digits)
            for block in parts["h"]:
                h = block(h)
            return self.lm_head(parts["ln_f"](h))

    return Twin().to(getattr(torch, dtype))


@pytest.mark.torch
@pytest.mark.parametrize(("dtype", "tol"), [("float64", 1e-10), ("float32", 1e-5)])
@each_position
@each_model
def test_torch_twin(kind, positions, dtype, tol):
    """Weights load under the authors' names, both ways; loss, logits and every gradient agree."""
    torch = pytest.importorskip("torch", reason="torch is not installed (the oracle extra)")
    dev, model = cpu_device(dtype), MODELS[kind]()
    w, tokens, _ = draw(model, seed=3)
    theirs = twin(torch, model, dtype)
    state = {n: torch.from_numpy(np.array(x)) for n, x in to_torch_state_dict(model, w).items()}
    theirs.load_state_dict(state, strict=True)
    again, found = from_torch_state_dict(theirs.state_dict(), model.heads, context=20)
    assert again.shapes == model.shapes
    assert again.tied == model.tied
    w = {n: x.astype(dtype) for n, x in found.items()}

    select = slice(None) if positions is None else positions
    target = np.random.default_rng(4).integers(0, V, (B, T))[:, select].reshape(-1)
    z, tape = again.forward(dev, w, Tokens(dev, tokens, V, positions))
    tz = theirs(torch.tensor(tokens))[:, select].reshape(-1, V)
    close(z, tz.detach().numpy(), tol)
    value, cache = cross_entropy_forward(dev, z, target, out=z)
    g = {n: np.full_like(x, np.nan) for n, x in w.items()}
    again.backward(dev, cross_entropy_backward(dev, 1.0, cache, dlogits=z), tape, g)
    loss = torch.nn.functional.cross_entropy(tz, torch.tensor(target))
    loss.backward()
    close(value, loss.item(), tol)
    ours = to_torch_state_dict(again, g)
    compared = {n: p.grad.numpy() for n, p in theirs.named_parameters() if p.requires_grad}
    assert len(compared) == len(g)
    for name, grad in compared.items():
        close(ours[name], grad, tol, name)
