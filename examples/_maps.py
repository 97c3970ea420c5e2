"""The maps of a phase diagram as a file of arrays, small enough to stand beside the pages."""

import numpy as np

from tinygrok.disk.writer import atomic_write


def save_maps(path, axis, strengths, table):
    """Write a .npz: alpha (A,), xi (A,), strength (S,), and over (strength, alpha, xi) train and
    test accuracy and the phase, a number in PHASES of tinygrok.probes.phases.

    table   {title: {"phase", "train", "test"}}, one a strength"""
    arrays = {"alpha": np.array(axis), "xi": np.array(axis), "strength": np.array(strengths)}
    kinds = {"phase": np.int8, "train": np.float32, "test": np.float32}
    for name, kind in kinds.items():
        maps = [grid[name] for grid in table.values()]
        arrays[name] = np.array(maps, dtype=kind)
    atomic_write(path, lambda file: np.savez_compressed(file, **arrays))
