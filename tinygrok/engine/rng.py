"""Random numbers. Weights, splits, corruption and batches come from host generators, so a CPU and a
GPU run start from the same bits; dropout masks come from a counter hash that gives the same mask on
both (kernels.dropout_mask)."""

import numpy as np

STREAMS = (
    "init",
    "split",
    "corruption",
    "batches",
    "dropout",
    "probes",
)  # append only: the position is the key


def generator(seed: int, stream: str) -> np.random.Generator:
    """The generator of one named stream of a seed: independent of every other stream and of what
    they have drawn."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(STREAMS.index(stream),)))


def mask_keys(seeds, step: int, layer: int = 0) -> np.ndarray:
    """Two 32-bit keys per seed for the dropout mask of a layer at a step: a pure function, nothing
    to checkpoint.

    seeds (E,) or a single int -> uint32 (E, 2) or (2,)
    """
    keys = [
        np.random.SeedSequence(
            int(s), spawn_key=(STREAMS.index("dropout"), step, layer)
        ).generate_state(2)
        for s in np.atleast_1d(seeds)
    ]
    return np.stack(keys) if np.ndim(seeds) else keys[0]
