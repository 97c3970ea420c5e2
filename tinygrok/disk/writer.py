"""Files that are whole or not there."""

import csv
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

WRITTEN: set[Path] = set()  # by this process


def atomic_write(path: Path, write: Callable) -> None:
    """write(binary file) under a temporary name in the same folder, then rename it to path.

    The file is flushed to disk before it is renamed, and its folder after, so a crash leaves the
    old file or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        WRITTEN.add(path.resolve())
        with suppress(OSError):  # not every system opens folders
            folder = os.open(path.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, data: dict) -> None:
    """A JSON file; what JSON cannot hold becomes null or text."""
    text = json.dumps(_plain(data), indent=2, allow_nan=False) + "\n"
    atomic_write(path, lambda file: file.write(text.encode()))


def _plain(x):
    """What JSON can hold: NumPy numbers and arrays as numbers and lists, nan and infinity as null,
    paths as text."""
    if isinstance(x, dict):
        return {str(k): _plain(v) for k, v in x.items()}
    if isinstance(x, np.ndarray | np.generic):
        return _plain(x.tolist())
    if isinstance(x, list | tuple):
        return [_plain(v) for v in x]
    if isinstance(x, float) and not np.isfinite(x):
        return None
    return x if isinstance(x, str | int | float | None) else str(x)


def write_csv(path: Path, history: Mapping[str, Sequence]) -> None:
    """A CSV file of columns by name; one whose entries are arrays becomes name_0, name_1, ..."""
    columns = {}
    for name, values in history.items():
        table = np.asarray(values)
        if table.ndim == 1:
            columns[name] = table
            continue
        for index, column in enumerate(table.reshape(len(values), -1).T):
            columns[f"{name}_{index}"] = column
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    atomic_write(path, lambda file: file.write(text.getvalue().encode()))
