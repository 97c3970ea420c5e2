"""Weights of the authors' PyTorch classes, in and out: published checkpoints give the same logits
here.

Learning to grok (`ablghtianyi/ICL_Modular_Arithmetic`, class RoPETransformer) and How can
transformers predict pseudo-random numbers (`dayal-kalra/transformer-prng`, classes GPT and
GPT_oth_abacus). PyTorch keeps a linear layer as (out, in), this library as (in, out). PyTorch
itself is not needed."""

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ..engine.errors import InputError
from .gpt import GPT

TOKEN = "transformer.wte.weight"
HEAD = "lm_head.weight"
OUTER = {
    "embed.token": TOKEN,
    "embed.position": "transformer.wpe.weight",
    "embed.digit": "transformer.abacus.weight",
    "final.gain": "transformer.ln_f.weight",
    "final.shift": "transformer.ln_f.bias",
    "head": HEAD,
}
EMBEDDINGS = ("embed.token", "embed.position", "embed.digit")
LAYERS = {"ln1": "ln_1", "ln2": "ln_2", "mlp.in": "mlp.c_fc", "mlp.out": "mlp.c_proj"}
# The two repositories name attention differently: the first has rotary positions, the second not.
ROTARY_LAYERS = {**LAYERS, "attn.qkv": "attn.to_qkv", "attn.out": "attn.o"}
OTHER_LAYERS = {**LAYERS, "attn.qkv": "attn.c_attn", "attn.out": "attn.c_proj"}
KINDS = {"gain": "weight", "shift": "bias", "weight": "weight", "bias": "bias"}
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
    return name.startswith("blocks.") and name.endswith(".weight")


def _transposed_host(name: str, x: np.ndarray) -> np.ndarray:
    """A matrix of a linear layer with its axes swapped; anything else as it is."""
    return x.T if _is_linear(name) else x


# -- reading ---------------------------------------------------------------------------------------


def _load_host(path: Path) -> dict:
    """The arrays of a .npz or .safetensors file."""
    if path.suffix not in (".npz", ".safetensors"):
        raise InputError(
            f"{path}: give a .npz, a .safetensors or, of a .pth, the dict that torch.load returns"
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.numpy import load_file  # pyright: ignore[reportMissingImports]

            return load_file(path)
        with np.load(path, allow_pickle=False) as archive:
            return dict(archive)
    except ImportError as error:
        raise InputError(
            "a .safetensors file needs the package safetensors: pip install 'tinygrok[interop]'"
        ) from error
    except Exception as error:  # both packages raise errors of their own kinds on damaged files
        raise InputError(f"{path}: cannot be read ({error})") from error


def _array_host(x) -> np.ndarray:
    """float64, of an array or a torch tensor."""
    torch = sys.modules.get("torch")  # where there is a tensor, torch is loaded
    if torch is not None and isinstance(x, torch.Tensor):
        x = x.detach().cpu().double().numpy()
    return np.asarray(x, dtype=float)


def _read_host(source: Any) -> dict[str, np.ndarray]:
    """float64 host arrays by name, without the prefixes that DistributedDataParallel and
    torch.compile add."""
    if isinstance(source, str | Path):
        source = _load_host(Path(source))
    arrays = {}
    try:
        for name, x in source.items():
            plain = re.sub(r"^((module|_orig_mod)\.)+", "", name)
            arrays[plain] = _array_host(x)
    except (TypeError, ValueError) as error:
        raise InputError(f"a state dict holds arrays of numbers only ({error})") from error
    return arrays


def _frequencies_host(size: int) -> np.ndarray:
    """base^(-2j/D) of a head of D channels, base 10000."""
    return 10000.0 ** (-np.arange(0, size, 2) / size)


def _check_frequencies_host(stored: list[np.ndarray], size: int) -> None:
    expected = _frequencies_host(size)
    for f in stored:
        if f.shape != expected.shape or not np.allclose(f, expected, rtol=1e-5, atol=0):
            raise InputError(f"other rotary frequencies than 10000^(-2j/{size})")


def from_torch_state_dict(
    source: Any, heads: int | None = None, activation: str | None = None, context: int | None = None
) -> tuple[GPT, dict[str, np.ndarray]]:
    """(model, weights): the GPT that a state dict of the authors' classes belongs to, and its
    weights, host float64.

    source      {name: array or torch tensor}, or the path of a .npz or .safetensors file
    heads       not in the weights, except beside stored rotary frequencies: must be given for the
                other classes
    activation  not in the weights: "relu", and "gelu" for digits, unless given
    context     with rotary positions: the longest sequence (512 unless given)
    Raises InputError for missing, foreign or misshapen arrays.

    >>> import numpy as np
    >>> net = GPT.numbers(vocab=16, width=8, depth=1, heads=2, context=6)
    >>> state = to_torch_state_dict(net, net.init(np.random.default_rng(0)))
    >>> model, weights = from_torch_state_dict(state, heads=2)
    >>> model
    GPT(vocabulary 16, width 8, depth 1, 2 heads, learned positions, relu, 968 parameters)
    """
    arrays = _read_host(source)
    if TOKEN not in arrays:
        raise InputError(f"no {TOKEN}: not a state dict of the known classes")
    names = [name for name in arrays if name.endswith("rotary_emb.freqs")]
    stored = [arrays.pop(name) for name in names]
    model = _model_host(arrays, stored, heads, activation, context)
    _check_frequencies_host(stored, model.width // model.heads)
    if model.tied:
        arrays.pop(HEAD, None)
    wanted = {name: torch_name(name, model.positions == "rotary") for name in model.shapes}
    wrong = sorted(set(wanted.values()) ^ set(arrays))
    if wrong:
        more = ", ..." if len(wrong) > 5 else ""
        raise InputError(f"missing or foreign arrays: {', '.join(wrong[:5])}{more}")
    weights = {}
    for name, shape in model.shapes.items():
        x = _transposed_host(name, arrays[wanted[name]])
        if x.shape != shape:
            raise InputError(
                f"{wanted[name]}: expected {shape} (linear layers: transposed), got {x.shape}"
            )
        weights[name] = x
    return model, weights


def _model_host(
    arrays: dict[str, np.ndarray],
    frequencies: list[np.ndarray],
    heads: int | None,
    activation: str | None,
    context: int | None,
) -> GPT:
    """The model that the names and shapes of a state dict belong to."""
    sizes = {name: arrays[OUTER[name]].shape for name in EMBEDDINGS if OUTER[name] in arrays}
    if any(len(shape) != 2 for shape in sizes.values()):
        raise InputError("the embeddings of a state dict must be matrices")
    vocab, width = sizes["embed.token"]
    if heads is None and frequencies:
        heads = width // (2 * frequencies[0].size)
    if heads is None:
        raise InputError("the number of heads does not follow from the weights: pass heads")
    digits = 1
    if "embed.digit" in sizes:
        digits = sizes["embed.digit"][0]
    if "embed.position" not in sizes:
        positions = "rotary"
        longest = context or 512
    else:
        positions = "digits" if "embed.digit" in sizes else "learned"
        longest = sizes["embed.position"][0] * digits
    usual = "gelu" if positions == "digits" else "relu"
    head = arrays.get(HEAD)
    return GPT(
        vocab,
        width,
        depth=len({n.split(".")[2] for n in arrays if n.startswith("transformer.h.")}),
        heads=heads,
        context=longest,
        positions=positions,
        digits=digits,
        activation=activation or usual,
        bias=any(n.endswith("mlp.c_fc.bias") for n in arrays),
        shift=OUTER["final.shift"] in arrays,
        tied=head is None or np.array_equal(head, arrays[TOKEN]),
        residual=("mlp.out",) if positions == "rotary" else ("attn.out", "mlp.out"),
    )


# -- writing ---------------------------------------------------------------------------------------


def to_torch_state_dict(model: GPT, weights: dict) -> dict:
    """The state dict, as host arrays, that the authors' class of this model loads (torch.from_numpy
    each, or np.savez).

    >>> import numpy as np
    >>> net = GPT.numbers(vocab=16, width=8, depth=1, heads=2, context=6)
    >>> state = to_torch_state_dict(net, net.init(np.random.default_rng(0)))
    >>> state["transformer.h.0.mlp.c_fc.weight"].shape  # (out, in)
    (32, 8)
    """
    rotary = model.positions == "rotary"
    state = {}
    for name, x in weights.items():
        state[torch_name(name, rotary)] = _transposed_host(name, x).copy()
    if model.tied:
        state[HEAD] = state[TOKEN]
    if rotary:
        frequencies = _frequencies_host(model.width // model.heads).astype("float32")
        for i in range(model.depth):
            state[FREQUENCIES.format(i)] = frequencies
    return state
