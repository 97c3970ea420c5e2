"""Parts of a long computation, a file each: an example that was interrupted keeps them."""

import json

import numpy as np

from tinygrok.engine.errors import InputError
from tinygrok.engine.files import atomic_write

BLOCK = 64  # chunks of a verification a file


def kept(path, function, *arguments):
    """What a function returns, arrays and tuples as lists, from a file if it is there; else it is
    computed and written. Fresh or kept, it is what JSON gives back, to the last digit."""
    if not path.exists():
        text = json.dumps(function(*arguments), default=np.ndarray.tolist)
        atomic_write(path, lambda file: file.write(text.encode()))
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}): remove it, then --resume") from error


def kept_map(folder, dev, report):
    """dev.map for the chunks of a verification, in blocks that are a file each.

    report   called with the first input of every block"""

    def over(function, starts):
        results = []
        for i in range(0, len(starts), BLOCK):
            block = starts[i : i + BLOCK]
            report(block[0])
            results += kept(folder / f"inputs-{block[0]}.json", dev.map, function, block)
        return results

    return over
