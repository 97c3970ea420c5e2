"""Weights of the authors' PyTorch classes, in and out: published checkpoints give the same logits
here.

Learning to grok (`ablghtianyi/ICL_Modular_Arithmetic`, class RoPETransformer) and How can
transformers predict pseudo-random numbers (`dayal-kalra/transformer-prng`, classes GPT and
GPT_oth_abacus). PyTorch keeps a linear layer as (out, in), this library as (in, out). PyTorch
itself is not needed."""

import re
from pathlib import Path

import numpy as np

from ..engine.errors import InputError
from .gpt import GPT

OUTER = {
    "embed.token": "transformer.wte.weight",
    "embed.position": "transformer.wpe.weight",
    "embed.digit": "transformer.abacus.weight",
    "final.gain": "transformer.ln_f.weight",
    "final.shift": "transformer.ln_f.bias",
    "head": "lm_head.weight",
}
INNER = {
    "ln1": "ln_1",
    "ln2": "ln_2",
    "mlp.in": "mlp.c_fc",
    "mlp.out": "mlp.c_proj",
    "gain": "weight",
    "shift": "bias",
}
ATTENTION = {  # by the kind of positions: the two repositories name them differently
    True: {"attn.qkv": "attn.to_qkv", "attn.out": "attn.o"},
    False: {"attn.qkv": "attn.c_attn", "attn.out": "attn.c_proj"},
}
FREQUENCIES = "transformer.h.{}.attn.rotary_emb.freqs"  # stored, not trained: base^(-2j/D)


def torch_name(name: str, rotary: bool) -> str:
    """ "blocks.1.attn.qkv.weight" -> "transformer.h.1.attn.to_qkv.weight" (rotary) or
    "transformer.h.1.attn.c_attn.weight" """
    if name in OUTER:
        return OUTER[name]
    _, i, layer = name.split(".", 2)
    layer, kind = layer.rsplit(".", 1)
    return f"transformer.h.{i}.{(INNER | ATTENTION[rotary])[layer]}.{INNER.get(kind, kind)}"


def _is_linear(name: str) -> bool:
    return name.startswith("blocks.") and name.endswith(".weight")


def _read_host(source) -> dict[str, np.ndarray]:
    """float64 host arrays by name, without the prefixes that DistributedDataParallel and
    torch.compile add."""
    if isinstance(source, str | Path):
        suffix = Path(source).suffix
        try:
            if suffix == ".safetensors":
                from safetensors.numpy import load_file as load
            else:
                load = {".npz": lambda path: dict(np.load(path, allow_pickle=False))}[suffix]
            source = load(source)
        except KeyError as error:
            raise InputError(
                f"{source}: give a .npz, a .safetensors or, of a .pth, the dict that torch.load returns"
            ) from error
        except ImportError as error:
            raise InputError(
                "a .safetensors file needs the package safetensors (pip install 'tinygrok[interop]')"
            ) from error
        except Exception as error:  # both packages raise errors of their own kinds on damaged files
            raise InputError(f"{source}: cannot be read ({error})") from error
    host = lambda x: x.detach().cpu().double().numpy() if hasattr(x, "detach") else x  # noqa: E731  torch tensors
    try:
        return {
            re.sub(r"^((module|_orig_mod)\.)+", "", name): np.asarray(host(x), dtype=float)
            for name, x in source.items()
        }
    except (TypeError, ValueError) as error:
        raise InputError(f"a state dict holds arrays of numbers only ({error})") from error


def _frequencies_host(size: int) -> np.ndarray:
    return 10000.0 ** (-np.arange(0, size, 2) / size)


def _same_host(a, b, rtol: float = 0.0) -> bool:
    return a is None or (a.shape == b.shape and np.allclose(a, b, rtol=rtol, atol=0))


def from_torch_state_dict(
    source, heads: int | None = None, activation: str | None = None, context: int | None = None
):
    """(model, weights): the GPT that a state dict of the authors' classes belongs to, and its
    weights, host float64.

    source      {name: array or torch tensor}, or the path of a .npz or .safetensors file
    heads       not in the weights, except beside stored rotary frequencies: must be given for the other classes
    activation  not in the weights: "relu", and "gelu" for digits, unless given
    context     with rotary positions: the longest sequence (512 unless given)
    Raises InputError for missing, foreign or misshapen arrays.
    """
    arrays = _read_host(source)
    if OUTER["embed.token"] not in arrays:
        raise InputError(f"no {OUTER['embed.token']}: not a state dict of the known classes")
    token, position, digits = (
        arrays.get(OUTER[f"embed.{n}"]) for n in ("token", "position", "digit")
    )
    if any(a is not None and a.ndim != 2 for a in (token, position, digits)):
        raise InputError("the embeddings of a state dict must be matrices")
    rotary, D = position is None, 1 if digits is None else len(digits)
    stored = [arrays.pop(name) for name in list(arrays) if name.endswith("rotary_emb.freqs")]
    heads = token.shape[1] // (2 * stored[0].size) if heads is None and stored else heads
    if heads is None:
        raise InputError("the number of heads does not follow from the weights: pass heads")
    model = GPT(
        *token.shape,
        depth=len({n.split(".")[2] for n in arrays if n.startswith("transformer.h.")}),
        heads=heads,
        context=(context or 512) if rotary else len(position) * D,
        positions="rotary" if rotary else "learned" if digits is None else "digits",
        digits=D,
        activation=activation or ("relu" if digits is None else "gelu"),
        bias=any(n.endswith("mlp.c_fc.bias") for n in arrays),
        shift=OUTER["final.shift"] in arrays,
        tied=_same_host(arrays.get(OUTER["head"]), token),
        residual=("mlp.out",) if rotary else ("attn.out", "mlp.out"),
    )
    if not all(_same_host(f, _frequencies_host(model.width // heads), 1e-5) for f in stored):
        raise InputError(f"other rotary frequencies than 10000^(-2j/{model.width // heads})")
    if model.tied:
        arrays.pop(OUTER["head"], None)
    wanted = {name: torch_name(name, rotary) for name in model.shapes}
    wrong = sorted(set(wanted.values()) ^ set(arrays))
    if wrong:
        raise InputError(
            f"missing or foreign arrays: {', '.join(wrong[:5])}{', ...' if len(wrong) > 5 else ''}"
        )
    weights = {name: arrays[t].T if _is_linear(name) else arrays[t] for name, t in wanted.items()}
    for name, shape in model.shapes.items():
        if weights[name].shape != shape:
            raise InputError(
                f"{wanted[name]}: expected {shape} (linear layers: transposed), got {weights[name].shape}"
            )
    return model, weights


def to_torch_state_dict(model: GPT, weights: dict) -> dict:
    """The state dict, as host arrays, that the authors' class of this model loads (torch.from_numpy
    each, or np.savez)."""
    rotary = model.positions == "rotary"
    state = {
        torch_name(n, rotary): x.T.copy() if _is_linear(n) else x.copy() for n, x in weights.items()
    }
    state |= {OUTER["head"]: state[OUTER["embed.token"]]} if model.tied else {}
    frequencies = _frequencies_host(model.width // model.heads).astype("float32")
    return state | {FREQUENCIES.format(i): frequencies for i in range(model.depth) if rotary}
