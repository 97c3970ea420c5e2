"""Random numbers: named streams of a seed.

Weights, splits, corruption and batches come from host generators, so a CPU and a GPU run start from
the same bits; dropout masks come from a counter hash that gives the same mask on both
(kernels.dropout_mask)."""

import numpy as np

from .border import integer
from .errors import require_known

# Append only: the position of a name is its key.
STREAMS = ("init", "split", "corruption", "batches", "dropout", "probes")


def generator(seed: int, stream: str) -> np.random.Generator:
    """The generator of one named stream of a seed, independent of what other streams have drawn.

    stream   one of STREAMS; InputError for another name

    >>> generator(0, "split").integers(100, size=4).tolist()
    [66, 67, 35, 24]
    >>> generator(0, "init").integers(100, size=4).tolist()
    [80, 94, 0, 31]
    """
    require_known(stream, STREAMS, "stream")
    key = (STREAMS.index(stream),)
    entropy = integer(seed, "a seed", 0)
    return np.random.default_rng(np.random.SeedSequence(entropy, spawn_key=key))


def mask_keys(seeds, step: int, layer: int = 0) -> np.ndarray:
    """Two 32-bit keys per seed for the dropout mask of a layer at a step.

    seeds (E,) or a single int -> uint32 (E, 2) or (2,). A pure function: nothing to checkpoint.
    """
    spawn_key = (STREAMS.index("dropout"), step, layer)
    keys = []
    for seed in np.atleast_1d(seeds):
        sequence = np.random.SeedSequence(int(seed), spawn_key=spawn_key)
        keys.append(sequence.generate_state(2))
    return np.stack(keys) if np.ndim(seeds) else keys[0]
