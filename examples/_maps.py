"""Maps as a file of arrays, small enough to stand beside the pages."""

import numpy as np

from tinygrok.disk.writer import atomic_write


def save_maps(path, axes, maps):
    """Write a .npz: of the axes the values, and of each quantity an array (maps, rows, columns), in
    float32; of a phase its number.

    axes   {name: values}
    maps   {title: {quantity: (rows, columns)}}"""
    arrays = {name: np.array(values) for name, values in axes.items()}
    for name in next(iter(maps.values())):
        kind = np.int8 if name == "phase" else np.float32
        arrays[name] = np.array([grid[name] for grid in maps.values()], dtype=kind)
    atomic_write(path, lambda file: np.savez_compressed(file, **arrays))
