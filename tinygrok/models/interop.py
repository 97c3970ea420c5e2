"""Weights of the authors' PyTorch classes, in and out: published checkpoints give the same logits
here.

The two-layer networks of Grokking modular polynomials and To grok or not to grok
(`d-doshi/Grokking`, class fcn), the decoders of Learning to grok (`ablghtianyi/
ICL_Modular_Arithmetic`, class RoPETransformer) and of How can transformers predict pseudo-random
numbers (`dayal-kalra/transformer-prng`, classes GPT and GPT_oth_abacus). PyTorch keeps a linear
layer as (out, in), this library as (in, out). PyTorch is not needed, but for a .pth file, a pickle:

    state = torch.load("model.pth", map_location="cpu", weights_only=True)
    model, weights = tinygrok.from_torch_state_dict(state)
"""

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..disk.reader import open_arrays, refused
from ..engine.errors import InputError
from ..engine.params import check_shapes
from .gpt import GPT
from .mlp import TwoLayerNet

TOKEN = "transformer.wte.weight"
HEAD = "lm_head.weight"
OUTER = {"embed.token": TOKEN, "embed.position": "transformer.wpe.weight", "head": HEAD}
OUTER |= {"embed.digit": "transformer.abacus.weight"}
OUTER |= {"final.gain": "transformer.ln_f.weight", "final.shift": "transformer.ln_f.bias"}
EMBEDDINGS = ("embed.token", "embed.position", "embed.digit")
LAYERS = {"ln1": "ln_1", "ln2": "ln_2", "mlp.in": "mlp.c_fc", "mlp.out": "mlp.c_proj"}
# The two repositories name attention differently: the first has rotary positions, the second not.
ROTARY_LAYERS = {**LAYERS, "attn.qkv": "attn.to_qkv", "attn.out": "attn.o"}
OTHER_LAYERS = {**LAYERS, "attn.qkv": "attn.c_attn", "attn.out": "attn.c_proj"}
FCN = {"U": "fc1.weight", "W": "fc2.weight"}
FCN_NORM = {"norm.gain": "norm1.weight", "norm.shift": "norm1.bias"}
FCN_NORM |= {"norm.mean": "norm1.running_mean", "norm.var": "norm1.running_var"}
KINDS = {"gain": "weight", "shift": "bias", "weight": "weight", "bias": "bias"}
# What the published classes compute, by positions and whether the linear layers have biases.
ACTIVATION = {("rotary", False): "relu", ("learned", False): "relu"}
ACTIVATION |= {("learned", True): "gelu", ("digits", True): "gelu"}
FREQUENCIES = "transformer.h.{}.attn.rotary_emb.freqs"  # stored, not trained: base^(-2j/D)


def torch_name(name: str, rotary: bool) -> str:
    """Our name of a parameter -> the authors', with rotary positions or others.

    >>> torch_name("blocks.1.attn.qkv.weight", rotary=True)
    'transformer.h.1.attn.to_qkv.weight'
    >>> torch_name("blocks.1.attn.qkv.weight", rotary=False)
    'transformer.h.1.attn.c_attn.weight'
    """
    if name in OUTER:
        return OUTER[name]
    _, i, rest = name.split(".", 2)
    layer, kind = rest.rsplit(".", 1)
    layers = ROTARY_LAYERS if rotary else OTHER_LAYERS
    return f"transformer.h.{i}.{layers[layer]}.{KINDS[kind]}"


def _is_linear(name: str) -> bool:
    return name == "W" or (name.startswith("blocks.") and name.endswith(".weight"))


def _to_torch_host(name: str, x: np.ndarray) -> np.ndarray:
    """PyTorch's form of our array: (out, in) of a linear layer, U (S, p, N) as (N, S p)."""
    if name == "U":
        return x.transpose(2, 0, 1).reshape(x.shape[2], -1)
    return x.T if _is_linear(name) else x


def _from_torch_host(name: str, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of _to_torch_host."""
    if name == "U":
        return x.reshape(shape[2], *shape[:2]).transpose(1, 2, 0)
    return x.T if _is_linear(name) else x


# -- reading ---------------------------------------------------------------------------------------

WRAPPERS = ("model_state_dict", "state_dict", "model")  # entries of a checkpoint that hold weights
PREFIX = re.compile(r"^((module|model|_orig_mod)\.)+")  # of DataParallel, Lightning, torch.compile
MASK = re.compile(r"\.attn\.(bias|masked_bias|mask|causal_mask|tril)$")  # buffers, not parameters


def _array_host(x) -> np.ndarray:
    """float64, of an array or a torch tensor; NumPy reads bfloat16 as 2 bytes without a type."""
    torch = sys.modules.get("torch")  # where there is a tensor, torch is loaded
    if torch is not None and isinstance(x, torch.Tensor):
        x = x.detach().cpu().double().numpy()
    x = np.asarray(x)
    if x.dtype == "V2":  # the upper half of a float32
        x = (x.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return x.astype(float)


def _unwrapped(source: Mapping) -> Mapping:
    """The state dict inside a checkpoint, beside which optimiser states and settings may stand."""
    for name in WRAPPERS:
        if isinstance(source.get(name), Mapping):
            return _unwrapped(source[name])
    return source


def _read_host(source: Any) -> dict[str, np.ndarray]:
    """float64 host arrays by name, without wrappers, prefixes of other packages and masks."""
    if isinstance(source, str | Path):
        path = Path(source)
        if path.suffix.lower() not in (".npz", ".safetensors"):
            raise InputError(f"{path}: give a .npz, a .safetensors, or what torch.load makes of it")
        with refused(path), open_arrays(path) as (headers, read):
            source = {name: read(name) for name in headers}
    if not isinstance(source, Mapping):
        raise InputError(f"a state dict maps names to arrays; this is a {type(source).__name__}")
    arrays = {}
    for name, given in _unwrapped(source).items():
        plain = PREFIX.sub("", str(name))
        if plain in arrays:
            raise InputError(f"two arrays are called {plain}, with and without a prefix")
        try:
            x = _array_host(given)
        except (TypeError, ValueError) as error:
            raise InputError(f"a state dict holds numbers only; {name}: {error}") from error
        if x.ndim == 1 or not MASK.search(plain):  # of these names, one axis is a bias
            arrays[plain] = x
    return arrays


def _frequencies_host(size: int) -> np.ndarray:
    """base^(-2j/D) of a head of D channels, base 10000."""
    return 10000.0 ** (-np.arange(0, size, 2) / size)


def _check_frequencies_host(stored: list[np.ndarray], size: int) -> None:
    """To five digits; to the 8 bits of bfloat16, cut or rounded, where that was their type."""
    expected = _frequencies_host(size)
    for f in stored:
        last_bits = f.view("uint64") & (2**42 - 1)  # 0 in what was float16 or bfloat16
        rounding = 1e-5 if last_bits.any() else 2**-7
        if f.shape != expected.shape or not np.allclose(f, expected, rtol=rounding, atol=0):
            raise InputError(f"other rotary frequencies than 10000^(-2j/{size})")


def from_torch_state_dict(
    source: Any, heads: int | None = None, activation: str | None = None, context: int | None = None
) -> tuple[GPT | TwoLayerNet, dict[str, np.ndarray]]:
    """(model, weights) of a state dict of the authors' classes.

    The weights, with running statistics, are host arrays in float64.

    source      {name: array or torch tensor}, a checkpoint that holds one as model_state_dict,
                state_dict or model, or the path of a .npz or .safetensors file
    heads       of a decoder: not in the weights, except beside stored rotary frequencies
    activation  not in the weights; unless given that of the published class: x^S of fcn, ReLU of
                the decoders without biases, GELU of those with biases
    context     with rotary positions: the longest sequence (512 unless given)
    Raises InputError for missing, foreign or misshapen arrays, and for what must be given.

    >>> import numpy as np
    >>> net = GPT.numbers(vocab=16, width=8, depth=1, heads=2, context=6)
    >>> state = to_torch_state_dict(net, net.init(np.random.default_rng(0)))
    >>> model, weights = from_torch_state_dict(state, heads=2)
    >>> model
    GPT(vocabulary 16, width 8, depth 1, 2 heads, learned positions, relu, 968 parameters)
    """
    arrays = _read_host(source)
    if FCN["U"] in arrays and FCN["W"] in arrays:
        arrays.pop("norm1.num_batches_tracked", None)
        model = _two_layer_host(arrays, activation)
        return model, _weights_host(arrays, model.shapes | model.buffers, _fcn_names(model))
    if TOKEN not in arrays and HEAD in arrays:  # tied weights that were stored once
        arrays[TOKEN] = arrays[HEAD]
    if TOKEN not in arrays:
        raise InputError(f"no {TOKEN} and no {FCN['U']}: not a state dict of the known classes")
    names = [name for name in arrays if name.endswith("rotary_emb.freqs")]
    stored = [arrays.pop(name) for name in names]
    model = _gpt_host(arrays, stored, heads, activation, context)
    _check_frequencies_host(stored, model.width // model.heads)
    if model.tied:
        arrays.pop(HEAD, None)
    wanted = {name: torch_name(name, model.positions == "rotary") for name in model.shapes}
    return model, _weights_host(arrays, model.shapes, wanted)


def _weights_host(arrays: dict, shapes: dict, wanted: dict[str, str]) -> dict[str, np.ndarray]:
    """Our arrays from the authors', wanted {our name: theirs}: all of them and no other."""
    expected = {wanted[n]: _to_torch_host(n, np.empty(s)).shape for n, s in shapes.items()}
    check_shapes(arrays, expected)
    for name, x in arrays.items():
        if not np.isfinite(x).all():
            raise InputError(f"{name} is not finite")
    return {n: _from_torch_host(n, arrays[wanted[n]], s) for n, s in shapes.items()}


def _two_layer_host(arrays: dict[str, np.ndarray], activation: str | None) -> TwoLayerNet:
    """The network of fc1.weight (N, S p), on S one-hot inputs side by side, and fc2.weight (p, N);
    BatchNorm, norm1, follows the activation."""
    first = arrays[FCN["U"]].shape
    second = arrays[FCN["W"]].shape
    if len(first) != 2 or len(second) != 2 or not second[0] or first[1] % second[0]:
        raise InputError(f"fc1.weight must be (N, S p), fc2.weight (p, N), not {first}, {second}")
    p, width = second
    terms = first[1] // p
    norm = FCN_NORM["norm.gain"] in arrays
    return TwoLayerNet(p, width, terms, activation, batchnorm=norm)


def _fcn_names(model: TwoLayerNet) -> dict[str, str]:
    return FCN | FCN_NORM if model.batchnorm else FCN


def _gpt_host(
    arrays: dict, frequencies: list, heads: int | None, activation: str | None, context: int | None
) -> GPT:
    """The decoder that the names and shapes of a state dict belong to."""
    sizes = {name: arrays[OUTER[name]].shape for name in EMBEDDINGS if OUTER[name] in arrays}
    if any(len(shape) != 2 for shape in sizes.values()):
        raise InputError("the embeddings of a state dict must be matrices")
    vocab, width = sizes["embed.token"]
    if heads is None and frequencies and frequencies[0].size:
        heads = width // (2 * frequencies[0].size)
    if heads is None:
        raise InputError("the number of heads does not follow from the weights: pass heads")
    digits = sizes["embed.digit"][0] if "embed.digit" in sizes else 1
    if "embed.position" not in sizes:
        positions = "rotary"
        longest = context or 512
    else:
        positions = "digits" if "embed.digit" in sizes else "learned"
        longest = sizes["embed.position"][0] * digits
    bias = any(n.endswith("mlp.c_fc.bias") for n in arrays)
    activation = activation or ACTIVATION.get((positions, bias))
    if activation is None:
        kind = f"{positions} positions {'with' if bias else 'without'} biases"
        raise InputError(f"no published class has {kind}: pass activation, 'relu' or 'gelu'")
    head = arrays.get(HEAD)
    settings: dict = {"positions": positions, "digits": digits, "activation": activation}
    settings |= {"bias": bias, "shift": OUTER["final.shift"] in arrays}
    settings["tied"] = head is None or np.array_equal(head, arrays[TOKEN])
    settings["residual"] = ("mlp.out",) if positions == "rotary" else ("attn.out", "mlp.out")
    depth = len({n.split(".")[2] for n in arrays if n.startswith("transformer.h.")})
    return GPT(vocab, width, depth, heads, longest, **settings)


# -- writing ---------------------------------------------------------------------------------------


def to_torch_state_dict(model: GPT | TwoLayerNet, weights: dict) -> dict:
    """The state dict that the authors' class of this model loads, as host arrays.

    For PyTorch: torch.from_numpy each; for a file: np.savez. Raises InputError for other networks,
    whose classes are not known here.

    >>> import numpy as np
    >>> net = GPT.numbers(vocab=16, width=8, depth=1, heads=2, context=6)
    >>> state = to_torch_state_dict(net, net.init(np.random.default_rng(0)))
    >>> state["transformer.h.0.mlp.c_fc.weight"].shape  # (out, in)
    (32, 8)
    """
    if type(model) is TwoLayerNet:
        names = _fcn_names(model)
        return {names[name]: _to_torch_host(name, x).copy() for name, x in weights.items()}
    if type(model) is not GPT:
        raise InputError(f"no class of the papers for {model!r}: give a GPT or a TwoLayerNet")
    rotary = model.positions == "rotary"
    state = {}
    for name, x in weights.items():
        state[torch_name(name, rotary)] = _to_torch_host(name, x).copy()
    if model.tied:
        state[HEAD] = state[TOKEN]
    if rotary:
        frequencies = _frequencies_host(model.width // model.heads).astype("float32")
        for i in range(model.depth):
            state[FREQUENCIES.format(i)] = frequencies
    return state
