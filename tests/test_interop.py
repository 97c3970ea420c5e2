"""State dicts of the authors' PyTorch classes, as people have them: read, or refused in a line."""

import struct
from typing import Any

import numpy as np
import pytest
from helpers import safetensors

from tinygrok.engine.errors import InputError
from tinygrok.engine.rng import generator
from tinygrok.models.gpt import GPT
from tinygrok.models.interop import from_torch_state_dict, to_torch_state_dict
from tinygrok.models.mlp import TwoLayerNet
from tinygrok.models.vision import deep_mlp

NETS = {
    "rotary": lambda **o: GPT.in_context(11, 16, 3, 4, 20, **o),
    "learned": lambda **o: GPT.numbers(11, 16, 3, 4, 20, **o),
    "digits": lambda **o: GPT.base_b(11, 16, 3, 4, 10, 2, **o),
    "untied": lambda **o: GPT.numbers(11, 16, 3, 4, 20, tied=False, **o),
    "biased": lambda **o: GPT.numbers(11, 16, 2, 4, 20, activation="gelu", bias=True, **o),
    "fcn": lambda: TwoLayerNet(7, 10),
    "fcn of three terms": lambda: TwoLayerNet(5, 10, 3, "power3"),
    "fcn with BatchNorm": lambda: TwoLayerNet(7, 10, batchnorm=True),
}
TOKEN = "transformer.wte.weight"
HEAD = "lm_head.weight"
FREQUENCIES = "transformer.h.1.attn.rotary_emb.freqs"


def drawn(kind):
    """(network, weights of visible size with buffers, state dict)"""
    net = NETS[kind]()
    rng = generator(0, "init")
    shapes = net.shapes | net.buffers
    weights = {name: 1 + rng.standard_normal(shape) for name, shape in shapes.items()}
    return net, weights, to_torch_state_dict(net, weights)


def read(source, net, **options):
    """What is read, with the heads of a decoder that does not tell them."""
    if isinstance(net, GPT) and net.positions != "rotary":
        options.setdefault("heads", net.heads)
    return from_torch_state_dict(source, **options)


def same(found, net, weights, tolerance=0.0):
    model, got = found
    assert repr(model) == repr(net)
    assert model.activation == net.activation
    assert set(got) == set(weights)
    for name, x in weights.items():
        np.testing.assert_allclose(got[name], x, rtol=tolerance, atol=0, err_msg=name)


def test_a_chain_has_no_class_of_the_papers():
    model: Any = deep_mlp(4, 3, 1, 2)
    with pytest.raises(InputError, match="no class of the papers for Chain"):
        to_torch_state_dict(model, {})


@pytest.mark.parametrize("kind", NETS)
def test_round_trip(tmp_path, kind):
    net, weights, state = drawn(kind)
    assert all(x.flags.c_contiguous for x in state.values())
    same(read(state, net), net, weights)
    np.savez(tmp_path / "w.npz", **state)
    same(read(tmp_path / "w.npz", net), net, weights)
    same(read(str(tmp_path / "w.npz"), net), net, weights)


def test_the_layout_of_fcn():
    """fc1.weight (N, 2 p) on two one-hots side by side: column s p + n is what n_s = n adds."""
    _, weights, state = drawn("fcn")
    assert state["fc1.weight"].shape == (10, 14)
    np.testing.assert_array_equal(state["fc1.weight"][:, 7 + 3], weights["U"][1, 3])
    np.testing.assert_array_equal(state["fc2.weight"], weights["W"].T)


def half_masked(state):
    """nanoGPT's causal mask, and the one of Hugging Face."""
    masks = {"transformer.h.0.attn.bias": np.tril(np.ones((1, 1, 20, 20)))}
    masks["transformer.h.1.attn.bias"] = np.tril(np.ones((1, 1, 20, 20), bool))
    masks["transformer.h.1.attn.masked_bias"] = np.array(-1e9)
    return state | masks


def without(state, name):
    return {n: x for n, x in state.items() if n != name}


def prefixed(prefix):
    return lambda state: {prefix + name: x for name, x in state.items()}


FORMS = {
    "prefix module": prefixed("module."),
    "prefix model": prefixed("model."),
    "prefixes of torch.compile and DistributedDataParallel": prefixed("_orig_mod.module."),
    "prefixes of Lightning and torch.compile": prefixed("model._orig_mod."),
    "model_state_dict": lambda state: {
        "step": 3,
        "model_state_dict": state,
        "optimizer_state_dict": {"state": {}},
    },
    "state_dict": lambda state: {"state_dict": state, "epoch": 1},
    "model": lambda state: {"model": state, "model_args": {"n_head": 2}, "iter_num": 5},
    "a wrapper in a wrapper": lambda state: {"model": {"state_dict": state}},
    "a wrapper around prefixes": lambda state: {"model": prefixed("module.")(state)},
    "masks": half_masked,
    "tied weights stored as the head alone": lambda state: without(state, TOKEN),
    "tied weights stored as the embedding alone": lambda state: without(state, HEAD),
    "float32": lambda state: {n: x.astype("f4").astype("f8") for n, x in state.items()},
}


@pytest.mark.parametrize("form", FORMS)
def test_what_people_have(form):
    net, weights, state = drawn("learned")
    same(read(FORMS[form](state), net), net, weights, 1e-7 if form == "float32" else 0.0)


@pytest.mark.parametrize(("dtype", "tolerance"), [("F32", 1e-7), ("F16", 1e-3), ("BF16", 1e-2)])
@pytest.mark.parametrize("name", ["w.safetensors", "W.SafeTensors"])
def test_safetensors(tmp_path, name, dtype, tolerance):
    net, weights, state = drawn("learned")
    safetensors(tmp_path / name, without(state, TOKEN), dtype)
    same(read(tmp_path / name, net), net, weights, tolerance)


def test_safetensors_of_the_package(tmp_path):
    package = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
    net, weights, state = drawn("digits")
    package.save_file(state, tmp_path / "w.safetensors")
    same(read(tmp_path / "w.safetensors", net), net, weights)


def test_half_precision_in_npz(tmp_path):
    """NumPy stores bfloat16 as two bytes without a type."""
    net, weights, state = drawn("fcn")
    bits = {
        n: (x.astype("<f4").view("<u4") >> 16).astype("<u2").view("V2") for n, x in state.items()
    }
    np.savez(tmp_path / "W.NPZ", **bits)
    (tmp_path / "W.NPZ.npz").rename(tmp_path / "W.NPZ")
    same(read(tmp_path / "W.NPZ", net), net, weights, 1e-2)
    np.savez(tmp_path / "half.npz", **{n: x.astype("f2") for n, x in state.items()})
    same(read(tmp_path / "half.npz", net), net, weights, 1e-3)


@pytest.mark.parametrize(("kind", "activation"), [("learned", "relu"), ("biased", "gelu")])
def test_the_activation_of_the_published_class(kind, activation):
    net, _, state = drawn(kind)
    assert read(state, net)[0].activation == activation
    assert read(state, net, activation="gelu_tanh")[0].activation == "gelu_tanh"


def test_what_no_class_tells_is_asked_for():
    net = GPT.base_b(11, 16, 2, 4, 10, 2, bias=False)
    state = to_torch_state_dict(net, net.init(generator(0, "init")))
    with pytest.raises(InputError, match="pass activation"):
        from_torch_state_dict(state, heads=4)
    assert from_torch_state_dict(state, heads=4, activation="gelu")[0].activation == "gelu"


WRONG = [
    ("rotary", lambda s: {}, "not a state dict"),
    ("rotary", lambda s: 5, "this is a int"),
    ("rotary", lambda s: {n: x for n, x in s.items() if "freqs" not in n}, "pass heads"),
    ("rotary", lambda s: s | {FREQUENCIES: s[FREQUENCIES] * 2}, "frequencies"),
    ("rotary", lambda s: s | {"transformer.h.0.extra": np.zeros(3)}, "h.0.extra"),
    ("rotary", lambda s: without(s, "transformer.h.2.mlp.c_fc.weight"), "h.2.mlp.c_fc"),
    (
        "rotary",
        lambda s: s | {"transformer.h.0.attn.o.weight": np.zeros((16, 8))},
        r"attn.o.weight: expected shape \(16, 16\), got \(16, 8\)",
    ),
    ("rotary", lambda s: s | {TOKEN: np.ones(3)}, "must be matrices"),
    ("rotary", lambda s: s | {"transformer.h.0.attn.bias": np.zeros(48)}, "h.0.attn.bias"),
    ("rotary", lambda s: s | {TOKEN: np.array(["a"])}, "numbers only"),
    ("rotary", lambda s: s | {"module." + TOKEN: s[TOKEN]}, "two arrays are called"),
    ("fcn", lambda s: s | {"fc1.weight": np.zeros((10, 15))}, r"\(N, S p\)"),
    (
        "fcn",
        lambda s: s | {"fc1.weight": np.zeros((9, 14))},
        r"fc1.weight: expected shape \(10, 14\)",
    ),
    ("fcn", lambda s: s | {"fc1.bias": np.zeros(10)}, "fc1.bias"),
    ("fcn", lambda s: s | {"norm1.weight": np.zeros(10)}, "norm1.bias"),
    ("fcn", lambda s: s | {"fc2.weight": np.zeros(10)}, r"\(N, S p\)"),
]


@pytest.mark.parametrize(("kind", "change", "message"), WRONG, ids=[m for _, _, m in WRONG])
def test_wrong_state_dicts_are_refused(kind, change, message):
    with pytest.raises(InputError, match=message) as caught:
        from_torch_state_dict(change(drawn(kind)[2]))
    assert "\n" not in str(caught.value)


def test_wrong_files_are_refused(tmp_path):
    net, _, state = drawn("learned")
    good = tmp_path / "good.safetensors"
    safetensors(good, state, "F32")
    whole = good.read_bytes()
    files = {
        "none.npz": None,
        "w.pth": whole,
        "broken.npz": b"PK no archive",
        "empty.safetensors": b"",
        "cut.safetensors": whole[:-5],
        "long.safetensors": struct.pack("<Q", 2**60) + whole[8:],
        "list.safetensors": struct.pack("<Q", 2) + b"[]",
        "kind.safetensors": whole.replace(b'"F32"', b'"F8_"', 1),
        "text.safetensors": b"\xff" * 100,
    }
    for name, content in files.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InputError, match="torch.load" if name == "w.pth" else "cannot be read"):
            from_torch_state_dict(path, net.heads)
