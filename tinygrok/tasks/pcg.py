"""Permuted congruential generators: outputs of an LCG x -> (a x + c) mod 2^w that hides its state.

Source: O'Neill, PCG: a family of simple fast space-efficient statistically good algorithms for
random number generation, HMC-CS-2014-0905 (2014), and her C and C++ libraries, which set how many
bits are shifted. As a task: Tao and Barkeshli, Learning pseudorandom numbers with transformers:
permuted congruential generators, curricula, and interpretability, arXiv 2510.26792. (Their code
shifts by other counts in XSH-RS, and in XSH-RR unless w = 2 k.)

An output has k bits, the state x has w. ^ is exclusive or, y >> i drops the low i bits, rotations
are to the right, and the highest n bits of x tell how far."""

from dataclasses import dataclass
from functools import partial

import numpy as np

from ..engine.border import integer, integers
from .lcg import LARGEST, LcgData, fixed_modulus_digits
from .modular import TaskError


def truncated(x: np.ndarray, w: int, k: int) -> np.ndarray:
    """x >> (w - k): the high bits, for bit j of an LCG, counted from 1, has the period 2^j."""
    return x >> (w - k)


def xsl_rr(x: np.ndarray, w: int, k: int) -> np.ndarray:
    """Xorshift low, random rotation: of the low k bits of x ^ (x >> w/2)."""
    n = _rotation_bits(w, k)
    y = x ^ (x >> (w // 2))
    return _rotated(y, x >> (w - n), k)


def xsh_rr(x: np.ndarray, w: int, k: int) -> np.ndarray:
    """Xorshift high, random rotation: of the k bits below the highest n of x ^ (x >> (k + n)/2)."""
    n = _rotation_bits(w, k)
    y = x ^ (x >> ((k + n) // 2))
    return _rotated(y >> (w - k - n), x >> (w - n), k)


def xsh_rs(x: np.ndarray, w: int, k: int) -> np.ndarray:
    """Xorshift high, random shift: k bits of y = x ^ (x >> n + (k + 2^n - 1)/2).

    They start 0 to 2^n - 1 places below the highest n, the higher the larger these are. n = 0 to 4:
    one more from w - k = 2, 6, 19 and 36 on."""
    n = sum(w - k >= spare for spare in (2, 6, 19, 36))
    most = 2**n - 1
    y = x ^ (x >> (n + (k + most) // 2))
    dropped = w - k - n - most + (x >> (w - n))
    return y >> dropped & (2**k - 1)


def _rotation_bits(w: int, k: int) -> int:
    """n = floor(log2 k)."""
    n = k.bit_length() - 1
    if n == 0 or k + n > w:
        raise TaskError(f"a rotation takes k >= 2 bits of a state of k + log2 k, not {k} of {w}")
    return n


def _rotated(y: np.ndarray, by: np.ndarray, k: int) -> np.ndarray:
    """The low k bits of y rotated to the right by less than k."""
    mask = 2**k - 1
    low = y & mask
    return (low >> by | low << (k - by)) & mask


OUTPUTS = {"truncated": truncated, "xsl-rr": xsl_rr, "xsh-rr": xsh_rr, "xsh-rs": xsh_rs}


def outputs(x, name: str, w: int, k: int) -> np.ndarray:
    """Outputs of k bits of states x (integers of any shape) of w bits, 64 at most: exact.

    int64, or Python's integers (dtype object) where an output exceeds 2^63. Raises TaskError for
    k and w that the output function cannot have.

    >>> outputs([0b1011_0110], "truncated", 8, 3)
    array([5])
    >>> [int(outputs(0xABCD, name, 16, 8)) for name in OUTPUTS]
    [171, 51, 163, 84]
    """
    w = integer(w, "bits of a state", 1, 64)
    k = integer(k, "bits of an output", 1, w)
    states = integers(x, "states", 0, 2**w - 1)
    found = OUTPUTS[name](states.ravel().astype(np.uint64), w, k)
    return integers(found.reshape(states.shape), "outputs", 0, LARGEST)


@dataclass(kw_only=True)
class PcgData(LcgData):
    """LcgData whose numbers are the outputs of the states, which are not shown."""

    output: partial

    def _numbers(self, m, a, c, rng: np.random.Generator) -> np.ndarray:
        return self.output(super()._numbers(m, a, c, rng))


def hidden_state(name: str, w: int, k: int, length: int, rng, pool=128, draws=64) -> PcgData:
    """Outputs of k bits of LCGs mod 2^w, a token each, tested on a and c never trained on.

    `pool` multipliers and increments of full period in training, `draws` others of each in the
    tests, all pairs. Sequences start with the output of x_1.

    >>> data = hidden_state("xsh-rr", 10, 4, 6, np.random.default_rng(0))
    >>> data.batch(2, np.random.default_rng(0))
    array([[ 9,  0, 11,  4,  0,  4],
           [11, 15, 14,  4, 13, 14]])
    """
    output = partial(outputs, name=name, w=w, k=k)
    output([0])  # refuses what w and k cannot be
    states = fixed_modulus_digits(2 ** int(w), length, 2, int(w), rng, pool, draws)
    shown = vars(states) | {"vocab": 2 ** int(k), "base": None, "digits": 1}
    return PcgData(**shown, output=output)
