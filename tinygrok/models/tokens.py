"""The inputs of a decoder: sequences of token numbers, prepared once."""

import numpy as np

from ..engine.device import Device
from ..engine.errors import InputError
from ..ops.embedding import RowIndex


class Tokens:
    """Sequences of token numbers, and the positions whose next token counts in the loss.

    tokens     host integers (B, T), or (E, B, T) when members see different sequences; they are
               grouped by token once
    positions  a slice, or integers in increasing order; None: all. Logits have B Tq rows for Tq
               positions
    shape      (B, T)
    select     the positions on the device; None: all

    Raises InputError for a token outside the vocabulary and for positions outside the sequence,
    repeated or none.

    >>> import numpy as np
    >>> from tinygrok.engine.device import get_device
    >>> dev = get_device("cpu", "float64")
    >>> tokens = Tokens(dev, np.array([[3, 1, 4, 1], [5, 2, 6, 5]]), vocab=10, positions=[1, 3])
    >>> len(tokens), tokens.shape, tokens.select
    (2, (2, 4), array([1, 3]))
    """

    def __init__(self, dev: Device, tokens: np.ndarray, vocab: int, positions=None):
        tokens = np.asarray(tokens)
        if tokens.ndim not in (2, 3):
            raise InputError(f"tokens must have shape (B, T) or (E, B, T), not {tokens.shape}")
        B, T = tokens.shape[-2:]
        self.shape = B, T
        if positions is None:
            positions = slice(None)
        elif not isinstance(positions, slice):
            positions = list(positions)
        try:
            self.rows = RowIndex(dev, tokens.reshape(*tokens.shape[:-2], 1, B * T), vocab, "tokens")
            numbers = np.arange(T)[positions]
        except IndexError as error:
            raise InputError(str(error)) from error
        if not numbers.size or (np.diff(numbers) <= 0).any():
            raise InputError(f"positions must be in increasing order and not none, not {positions}")
        if numbers.size == T:
            self.select = None
        elif isinstance(positions, slice):
            self.select = positions  # a view, where a list of positions would be a gather
        else:
            self.select = dev.to_device(numbers)

    def __len__(self) -> int:
        return self.shape[0]
