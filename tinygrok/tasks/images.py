"""Labelled images from files that the user has: (Fashion-)MNIST in IDX, CIFAR-10 in its binary
version; or scikit-learn's digits.

Nothing is unpickled or executed; every header and size is checked.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..engine.errors import InputError

CIFAR_RECORDS = 10_000  # in every file, of 1 + 3 * 32 * 32 bytes


class Images(NamedTuple):
    """Images (n, H, W, C) and labels (n,) for training and for testing."""

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray


def _bytes(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error


def read_idx(path: Path) -> np.ndarray:
    """An IDX file of unsigned bytes, plain or gzipped: two zeros, type 8, number of axes,
    big-endian sizes, the bytes."""
    data = _bytes(path)
    axes = data[3] if data[:3] == b"\0\0\x08" and len(data) > 3 else 0
    if not 1 <= axes <= 4 or len(data) < 4 + 4 * axes:
        raise InputError(f"{path}: not an IDX file of unsigned bytes")
    shape = struct.unpack(f">{axes}I", data[4 : 4 + 4 * axes])
    if len(data) != 4 + 4 * axes + math.prod(shape):
        raise InputError(f"{path}: {len(data)} bytes, but the header announces an array of {shape}")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)


def _idx_pair(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    found = [
        next(iter(folder.glob(f"{part}-{kind}-ubyte*")), None)
        for kind in ("images-idx3", "labels-idx1")
    ]
    if None in found:
        raise InputError(
            f"{folder}: {part}-images-idx3-ubyte or {part}-labels-idx1-ubyte is missing, or test_batch.bin"
        )
    x, y = map(read_idx, found)
    if x.ndim != 3 or y.shape != x.shape[:1] or not y.size or y.max() > 9:
        raise InputError(
            f"{folder}: images {x.shape} and labels {y.shape} of {part} do not belong together"
        )
    return x[..., None], y.astype(np.int64)


def _cifar(path: Path) -> tuple[np.ndarray, np.ndarray]:
    records = np.frombuffer(_bytes(path), np.uint8)
    if records.size != CIFAR_RECORDS * 3073 or records[::3073].max() > 9:
        raise InputError(f"{path}: not {CIFAR_RECORDS} records of a label 0..9 and 3072 bytes")
    records = records.reshape(-1, 3073)
    return records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), records[:, 0].astype(
        np.int64
    )


def load(folder: Path | None) -> Images:
    """The images in a folder, told by the names of its files; None: scikit-learn's 1797 digits of 8
    x 8, the last 297 for testing. Raises InputError for a folder with neither, and for files that
    are damaged."""
    if folder is None:
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise InputError(
                "no images: name a folder with --data, or install scikit-learn for its digits"
            ) from error
        x, y = load_digits().images[..., None], load_digits().target.astype(np.int64)
        return Images(x[:1500], y[:1500], x[1500:], y[1500:])
    if (folder / "test_batch.bin").exists():
        parts = zip(*(_cifar(folder / f"data_batch_{i}.bin") for i in range(1, 6)), strict=True)
        return Images(*map(np.concatenate, parts), *_cifar(folder / "test_batch.bin"))
    return Images(*_idx_pair(folder, "train"), *_idx_pair(folder, "t10k"))


def normalised(data: Images) -> Images:
    """Float32 images with mean 0 and variance 1 in every channel of the training set."""
    mean, std = (f(data.train, axis=(0, 1, 2), dtype=np.float64) for f in (np.mean, np.std))
    scale = lambda x: ((x - mean) / std).astype(np.float32)  # noqa: E731
    return data._replace(train=scale(data.train), test=scale(data.test))


def augment(rng: np.random.Generator, x: np.ndarray, pad: int, flip: bool = True) -> np.ndarray:
    """Every image moved by up to `pad` pixels each way, with zeros from outside, and mirrored with
    probability 1/2."""
    B, H, W, _ = x.shape
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    rows, cols = rng.integers(0, 2 * pad + 1, (2, B, 1)) + np.arange(max(H, W))
    cols = np.where(flip & (rng.random((B, 1)) < 0.5), cols[:, W - 1 :: -1], cols[:, :W])
    return padded[np.arange(B)[:, None, None], rows[:, :H, None], cols[:, None]]
