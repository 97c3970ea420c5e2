"""Heads of an opened decoder: what they hand on, and what becomes of answers without them.

An opened decoder is a models.inspect.Decoder or whatever answers as it does: blocks of H heads with
D channels each, C = H D channels in the residual stream.
"""

import numpy as np


def head_slices(decoder, tokens: np.ndarray, block: int) -> np.ndarray:
    """(B, T, H, D): what every head hands to the block's output matrix, on tokens (B, T)."""
    joined = decoder.read(tokens, f"blocks.{block}.attn.out")
    return joined.reshape(*tokens.shape, decoder.model.heads, -1)


def replace_heads(decoder, tokens: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(depth, H, B, T): the most likely next tokens with one head replaced, for every head.

    values (depth, H, ...): what stands in for the slice of head h of block i is values[i, h], a
    number, a vector (D,) or a donor's slice (B, T, D)."""
    depth, heads = values.shape[:2]
    predicted = np.empty((depth, heads, *tokens.shape), dtype=int)
    for i, h in np.ndindex(depth, heads):
        edit = decoder.set_head(i, h, values[i, h])
        predicted[i, h] = decoder.predict(tokens, edit)
    return predicted


def patch_heads(decoder, clean: np.ndarray, donor: np.ndarray, scale: float = 1.25) -> np.ndarray:
    """(depth, H, B, T): replace_heads on clean (B, T), by the slices on donor times a scale.

    1.25 is the authors' factor."""
    blocks = range(decoder.model.depth)
    slices = np.array([head_slices(decoder, donor, i) for i in blocks])
    by_head = np.moveaxis(slices, 3, 1)
    return replace_heads(decoder, clean, scale * by_head)


def head_means(decoder, tokens: np.ndarray) -> np.ndarray:
    """(depth, H, D): mean of head_slices over rows and tokens."""
    means = []
    for i in range(decoder.model.depth):
        slices = head_slices(decoder, tokens, i)
        means.append(slices.mean(axis=(0, 1)))
    return np.array(means)
