"""What comes from disk, looked at before it is read: names, types, shapes and sizes are known, and
checked, before memory is taken.

Nothing is unpickled or executed. The functions raise what zipfile, zlib, json and NumPy raise for a
damaged file; inside `with refused(path):` all of it becomes one line."""

import json
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..engine.errors import InputError, one_line

SMALL = 2**26  # bytes: the longest JSON text, and what any packed file may unpack to
UNPACKED = 16  # beyond that, as many times its size: images of digits need 5, zeros 1000
NPY = np.lib.format
SAFETENSORS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "V2", "BOOL": "?"}
SAFETENSORS |= {f"I{8 * n}": f"<i{n}" for n in (1, 2, 4, 8)}
SAFETENSORS |= {f"U{8 * n}": f"<u{n}" for n in (1, 2, 4, 8)}


@contextmanager
def refused(path: str | Path, what="cannot be read", kind=InputError) -> Iterator[None]:
    """Whatever goes wrong inside becomes an InputError, of this kind: a line with path and cause.

    >>> with refused("state.npz"):
    ...     raise ValueError("no such\\nmember")
    Traceback (most recent call last):
    tinygrok.engine.errors.InputError: state.npz: cannot be read (no such member)
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        cause = getattr(error, "strerror", None) or error
        raise kind(f"{path}: {what} ({one_line(cause)})") from error


def open_file(path: Path) -> Any:
    """A regular file, to be read: a pipe would wait for ever, and a device never end."""
    if path.exists() and not path.is_file():
        raise ValueError("not a regular file")
    return open(path, "rb")


def room(path: Path) -> int:
    """The bytes that a file may unpack to."""
    return SMALL + UNPACKED * path.stat().st_size


def read_json(path: Path) -> dict:
    """The object in a JSON file. InputError for anything else."""
    with refused(path), open_file(path) as file:
        return parse_json(file.read(SMALL))


def parse_json(text: bytes) -> dict:
    """An object in JSON, no name twice in it. ValueError, or RecursionError, for anything else."""
    found = json.loads(text, object_pairs_hook=_by_name)
    if not isinstance(found, dict):
        raise ValueError("not an object in JSON")
    return found


def _by_name(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dictionary of pairs whose names are different, and such that can be printed."""
    found = dict(pairs)
    if len(found) < len(pairs) or not all(name.isprintable() for name in found):
        raise ValueError("a name stands twice in it, or has control characters")
    return found


@contextmanager
def open_arrays(path: Path) -> Iterator[tuple[dict, Callable[[str], np.ndarray]]]:
    """(headers, read) of a .npz or .safetensors file, while it is open.

    headers  {name: an array of that shape and type, which takes no memory}
    read     name -> the array itself, in memory
    """
    with open_file(path) as file:
        packed = path.suffix.lower() != ".safetensors"
        yield _npz(file, room(path)) if packed else _safetensors(file)


def _npz(file: BinaryIO, limit: int) -> tuple[dict, Callable]:
    """Members NAME.npy of an archive, each with a checksum, plain or packed by deflate."""
    archive = zipfile.ZipFile(file)
    members = _by_name([(m.filename.removesuffix(".npy"), m) for m in archive.infolist()])
    if sum(member.file_size for member in members.values()) > limit:
        raise ValueError(f"it would unpack to more than {limit} bytes")
    headers = {}
    for name, member in members.items():
        # A wrong length of a comment hides the members that follow.
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.comment:
            raise ValueError(f"{name} is not packed as NumPy does")
        with archive.open(member) as opened:
            NPY.read_magic(opened)
            shape, _, dtype = NPY.read_array_header_1_0(opened)  # other versions name columns
            size = member.file_size - opened.tell()
        headers[name] = np.broadcast_to(np.empty((), dtype), shape)
        if headers[name].nbytes != size or dtype.kind not in "biufV":
            raise ValueError(f"{name}: {size} bytes are no array of {dtype} {shape}")

    def read(name: str) -> np.ndarray:
        with archive.open(members[name]) as opened:
            return NPY.read_array(opened, allow_pickle=False)

    return headers, read


def _safetensors(file: BinaryIO) -> tuple[dict, Callable]:
    """The length of a JSON header in 8 bytes, the header {name: dtype, shape, first and last byte},
    the bytes of all arrays."""
    (length,) = struct.unpack("<Q", file.read(8))
    header = parse_json(file.read(min(length, SMALL)))
    header.pop("__metadata__", None)
    data = np.memmap(file, mode="r", offset=8 + length)
    headers = {}
    for name, entry in header.items():
        if entry["dtype"] not in SAFETENSORS:
            raise ValueError(f"{name}: {entry['dtype']} is none of {', '.join(SAFETENSORS)}")
        first, last = entry["data_offsets"]
        flat = data[first:last].view(SAFETENSORS[entry["dtype"]])
        headers[name] = flat.reshape(entry["shape"])
    if sum(x.nbytes for x in headers.values()) != data.nbytes:
        raise ValueError("its arrays are not as long as the file, or overlap")
    return headers, lambda name: np.array(headers[name])
