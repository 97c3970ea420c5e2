"""Parts of a long computation, a file each: an example that was interrupted keeps them."""

import hashlib
import json

import numpy as np

from tinygrok.disk.writer import atomic_write

BLOCK = 64  # chunks of a verification a file


def kept(path, function, *arguments):
    """What a function returns, arrays and tuples as lists, from a file if it is there; else it is
    computed and written. Fresh or kept, it is what JSON gives back, to the last digit. A file that
    is damaged, or of another part, counts as none."""
    text = read_part(path)
    if text is None:
        text = json.dumps(function(*arguments), default=np.ndarray.tolist)
        record = json.dumps({"sha256": checksum(path, text), "part": text}).encode()
        atomic_write(path, lambda file: file.write(record))
    return json.loads(text)


def checksum(path, text):
    return hashlib.sha256(f"{path.name} {text}".encode()).hexdigest()


def read_part(path):
    """The text that is kept in a file; None where it is not what was written there."""
    try:
        record = json.loads(path.read_bytes())
        text = record["part"]
        return text if record["sha256"] == checksum(path, text) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


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
