"""Dropout, whose mask is a pure function of (seed, step, layer, element): a counter hash."""

import numpy as np

from ..engine import kernels
from ..engine.device import Array, Device
from ..engine.errors import InputError


def dropout_forward(
    dev: Device, x: Array, rate: float | Array, keys: np.ndarray, offset=0, out=None, mask=None
):
    """y = mask x,  mask = 0 with probability rate, else 1/(1 - rate)

    x (..., B, N)   keys (..., 2) uint32, from engine.rng.mask_keys; rate is a float, or an array
    (...) with one rate per member. Element (b, n) of a member takes counter offset + b N + n, so a
    shard that starts at row r passes offset = r N and gets the mask that the whole batch would
    have. out may be x.
    """
    mask = dev.empty(x.shape) if mask is None else mask
    size = x.shape[-2] * x.shape[-1]  # of a member
    threshold, scale = _scale_host(dev, rate)
    kernels.dropout_mask(dev, dev.to_device(keys), offset, size, threshold, scale, mask)
    return dev.xp.multiply(x, mask, out=out), (mask,)


def _scale_host(dev: Device, rate) -> tuple:
    """(threshold of the hash, 1/(1 - rate)): numbers, or device arrays (E, 1, 1) for many rates."""
    check_rate_host(rate)
    rate = np.asarray(rate, dtype=np.float64)[..., None, None]
    threshold = (rate * 2**32).astype(np.uint32)
    scale = 1 / (1 - rate)
    if rate.size == 1:
        return threshold.item(), scale.item()
    return dev.to_device(threshold), dev.to_device(scale)


def check_rate_host(rate) -> None:
    """Raise InputError unless every rate lies in [0, 1)."""
    rates = np.asarray(rate)
    if not np.all((rates >= 0) & (rates < 1)):
        raise InputError(f"the dropout rate must lie in [0, 1), not {rate}")


def dropout_backward(dev: Device, dy: Array, cache: tuple, dx=None):
    """dx = mask dy        (dx may be dy)"""
    (mask,) = cache
    return dev.xp.multiply(dy, mask, out=dx)
