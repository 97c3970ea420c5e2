"""Dropout with a counter-based mask: the mask is a pure function of (seed, step, layer,
element)."""

import numpy as np

from ..engine import kernels
from ..engine.device import Array, Device
from ..engine.errors import InputError


def dropout_forward(
    dev: Device,
    x: Array,
    rate,
    keys: np.ndarray,
    offset: int = 0,
    out: Array | None = None,
    mask: Array | None = None,
):
    """y = mask x,  mask = 0 with probability rate, else 1/(1 - rate)        x (..., B, N)   keys (..., 2) uint32

    rate is a float, or an array (...) with one rate per member. Element (b, n) of a member takes
    counter offset + b N + n, so a shard that starts at row r passes offset = r N and gets the mask
    that the whole batch would have. keys come from engine.rng.mask_keys. out may be x.
    """
    mask = dev.empty(x.shape) if mask is None else mask
    kernels.dropout_mask(
        dev, dev.to_device(keys), offset, x.shape[-1] * x.shape[-2], *_scale_host(dev, rate), mask
    )
    return dev.xp.multiply(x, mask, out=out), (mask,)


def _scale_host(dev: Device, rate) -> tuple:
    """(threshold of the hash, 1/(1 - rate)): numbers, or device arrays (E, 1, 1) for a rate per
    member."""
    check_rate_host(rate)
    rate = np.asarray(rate, dtype=np.float64)[..., None, None]
    threshold, scale = (rate * 2**32).astype(np.uint32), 1 / (1 - rate)
    return (
        (threshold.item(), scale.item())
        if rate.size == 1
        else (dev.to_device(threshold), dev.to_device(scale))
    )


def check_rate_host(rate) -> None:
    """Raise InputError unless every rate lies in [0, 1)."""
    if not np.all((np.asarray(rate) >= 0) & (np.asarray(rate) < 1)):
        raise InputError(f"the dropout rate must lie in [0, 1), not {rate}")


def dropout_backward(dev: Device, dy: Array, cache: tuple, dx: Array | None = None):
    """dx = mask dy        (dx may be dy)"""
    (mask,) = cache
    return dev.xp.multiply(dy, mask, out=dx)
