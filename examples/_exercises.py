"""The twelve exercises in order of difficulty, and the inputs of each."""

import difflib

import numpy as np
from _exercises_kinds import Exercise, Probe, Steps

from tinygrok.engine.errors import InputError

# -- inputs ----------------------------------------------------------------------------------------


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).round(1)


def linear(rng, B, K, N):
    w = normal(rng, K, N)
    return {"x": normal(rng, B, K), "w": w, "b": normal(rng, N)}, ()


def matrix(rng, B, **columns):
    (C,) = columns.values()
    return {"x": normal(rng, B, C)}, ()


def embedding(rng, S, P, N, B):
    index = rng.integers(0, P - 1, (S, B))  # none takes the last row
    return {"u": normal(rng, S, P, N)}, (index,)


def adamw(rng, T, K, N):
    return {"w": normal(rng, K, N)}, (0.1, 0.5, (0.9, 0.98), 1e-3)


def cross_entropy(rng, B, C):
    return {"logits": 3 * normal(rng, B, C)}, (rng.integers(0, C, B),)


def norm(rng, B, N):
    return {"x": normal(rng, B, N), "gain": normal(rng, N), "shift": normal(rng, N)}, ()


def attention(rng, B, T, D):
    return {name: normal(rng, B, T, D) for name in "qkv"}, ()


def conv(rng, B, H, W, k, C, N, s, p):
    w = normal(rng, k, k, C, N)
    b = normal(rng, N)
    return {"x": normal(rng, B, H, W, C), "w": w, "b": b}, (s, p)


def apjn(rng, B, N0, N1, N2):
    weights = [normal(rng, N0, N1), normal(rng, N1, N1), normal(rng, N1, N2)]
    return {"x": normal(rng, B, N0)}, (weights,)


def tangent_pair(rng, B, K, N):
    tensors, _ = linear(rng, B, K, N)
    return {"x": tensors.pop("x"), "xdot": normal(rng, B, K), **tensors}, ()


# -- the list --------------------------------------------------------------------------------------

ORDERED = (
    Exercise(
        "linear",
        1,
        "products with transposes; a sum over the batch",
        "linear_backward in tinygrok/ops/linear.py",
        ("dx", "dw", "db"),
        linear,
        ("B=5 K=3 N=7", "B=3 K=4 N=6"),
    ),
    Exercise(
        "gelu_tanh",
        1,
        "the product rule and the chain rule, entry by entry",
        "_gelu_tanh_df in tinygrok/engine/kernels.py, which activation_backward calls",
        ("dx",),
        matrix,
        ("B=2 N=3", "B=3 N=5"),
    ),
    Exercise(
        "embedding",
        1,
        "picking rows: what is read twice gets two gradients",
        "embedding_backward in examples/_reference.py, the fast one in ops/embedding.py",
        ("du",),
        embedding,
        ("S=2 P=5 N=3 B=9", "S=3 P=4 N=2 B=7"),
    ),
    Steps(
        "adamw",
        1,
        "an optimiser from its description; the bias correction worked out",
        "AdamW in tinygrok/engine/optim.py",
        ("w", "m", "v"),
        adamw,
        ("T=1 K=2 N=3", "T=4 K=3 N=2"),
        asks="step",
    ),
    Exercise(
        "softmax",
        2,
        "a Jacobian with coupled entries, never written down",
        "softmax_backward in tinygrok/engine/row_kernels.py (called by ops/loss.py)",
        ("dx",),
        matrix,
        ("B=2 C=3", "B=3 C=5"),
    ),
    Exercise(
        "cross_entropy",
        2,
        "means over the batch, and why softmax and log go together",
        "cross_entropy_backward in tinygrok/ops/loss.py",
        ("dlogits",),
        cross_entropy,
        ("B=5 C=3", "B=3 C=4"),
    ),
    Exercise(
        "layernorm",
        2,
        "statistics of the input: three ways from x to y",
        "layernorm_backward in tinygrok/ops/norm.py and engine/row_kernels.py, line by line in"
        " examples/_reference.py",
        ("dx", "dgain", "dshift"),
        norm,
        ("B=3 N=5", "B=6 N=7"),
    ),
    Exercise(
        "batchnorm",
        2,
        "statistics of the batch: samples that act on each other",
        "batchnorm_backward in tinygrok/ops/norm.py, line by line in examples/_reference.py",
        ("dx", "dgain", "dshift"),
        norm,
        ("B=5 N=3", "B=7 N=6"),
    ),
    Exercise(
        "attention",
        3,
        "products, mask and softmax taken back one at a time",
        "attention_backward in examples/_reference.py, the fast one in ops/attention.py",
        ("dq", "dk", "dv"),
        attention,
        ("B=2 T=4 D=3", "B=3 T=3 D=2"),
    ),
    Exercise(
        "conv",
        3,
        "overlapping windows, stride and padding",
        "conv_backward in examples/_reference.py, the fast one in ops/conv.py",
        ("dx", "dw", "db"),
        conv,
        ("B=2 H=4 W=5 k=3 C=2 N=3 s=1 p=1", "B=3 H=5 W=4 k=3 C=1 N=2 s=2 p=1"),
    ),
    Probe(
        "apjn",
        3,
        "a backward pass as a measuring device: Jacobian norms by a random vector",
        "Propagation.apjn in tinygrok/criticality/jacobian.py",
        ("J",),
        apjn,
        ("B=3 N0=4 N1=5 N2=6", "B=5 N0=3 N1=4 N2=7"),
        asks="probe",
    ),
    Exercise(
        "tangent_pair",
        3,
        "the gradient of a function of tangents, with which AutoInit tunes networks",
        "pair in tinygrok/models/chain.py, its rule for tanh in tinygrok/ops/activation.py",
        ("dx", "dxdot", "dw", "db"),
        tangent_pair,
        ("B=4 K=3 N=2", "B=5 K=2 N=3"),
    ),
)
EXERCISES = {exercise.name: exercise for exercise in ORDERED}
LEVELS = ("", "easy", "medium", "hard")


def number(exercise: Exercise) -> str:
    """ "5 of 12" """
    return f"{ORDERED.index(exercise) + 1} of {len(ORDERED)}"


def find(name: str) -> Exercise:
    """By name, or by number in the list."""
    if name.isdecimal() and 1 <= int(name) <= len(ORDERED):
        return ORDERED[int(name) - 1]
    if name in EXERCISES:
        return EXERCISES[name]
    close = difflib.get_close_matches(name, EXERCISES, 1)
    meant = f"did you mean {close[0]}? " if close else ""
    raise InputError(f"there is no exercise {name!r}: {meant}exercise.py --list shows all of them")
