"""Labelled images from the user's files, (Fashion-)MNIST or CIFAR-10, or scikit-learn's digits.

MNIST is read in IDX, CIFAR-10 in its binary version. Nothing is unpickled or executed; every header
and size is checked.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..engine.errors import InputError

CIFAR_RECORDS = 10_000  # in every file
CIFAR_BYTES = 1 + 3 * 32 * 32  # of a record: the label, then red, green and blue
DIGITS_TRAIN = 1500  # of scikit-learn's 1797


class Images(NamedTuple):
    """Images (n, H, W, C) and labels (n,) for training and for testing."""

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray


def _bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error


def read_idx(path: Path) -> np.ndarray:
    """The array in an IDX file of unsigned bytes, plain or gzipped.

    Two zeros, type 8, number of axes, big-endian sizes, the bytes."""
    data = _bytes(path)
    is_idx = data[:3] == b"\0\0\x08" and len(data) > 3
    axes = data[3] if is_idx else 0
    header = 4 + 4 * axes
    if not 1 <= axes <= 4 or len(data) < header:
        raise InputError(f"{path}: not an IDX file of unsigned bytes")
    shape = struct.unpack(f">{axes}I", data[4:header])
    if len(data) != header + math.prod(shape):
        raise InputError(f"{path}: {len(data)} bytes, but the header announces an array of {shape}")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _idx_pair(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    names = (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte")
    images_path, labels_path = (next(folder.glob(f"{name}*"), None) for name in names)
    if images_path is None or labels_path is None:
        raise InputError(f"{folder}: {' or '.join(names)} is missing, or test_batch.bin")
    x = read_idx(images_path)
    y = read_idx(labels_path)
    belong = x.ndim == 3 and y.shape == x.shape[:1]
    if not belong or y.size == 0 or y.max() > 9:
        shapes = f"images {x.shape} and labels {y.shape}"
        raise InputError(f"{folder}: {shapes} of {part} do not belong together")
    return x[..., None], y.astype(np.int64)


def _cifar(path: Path) -> tuple[np.ndarray, np.ndarray]:
    data = np.frombuffer(_bytes(path), np.uint8)
    if data.size != CIFAR_RECORDS * CIFAR_BYTES or data[::CIFAR_BYTES].max() > 9:
        raise InputError(f"{path}: not {CIFAR_RECORDS} records of a label 0..9 and 3072 bytes")
    records = data.reshape(-1, CIFAR_BYTES)
    planes = records[:, 1:].reshape(-1, 3, 32, 32)  # (n, C, H, W)
    return planes.transpose(0, 2, 3, 1), records[:, 0].astype(np.int64)


def load(folder: Path | None = None) -> Images:
    """The images in a folder, told by the names of its files; None: scikit-learn's digits.

    Of the 1797 digits of 8 x 8 the last 297 are for testing. Raises InputError for a folder with
    neither kind of files, and for files that are damaged.

    >>> load(Path("no/such/folder"))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    tinygrok.engine.errors.InputError: no/such/folder: train-images-idx3-ubyte or ... is missing...
    """
    if folder is None:
        return _digits()
    if (folder / "test_batch.bin").exists():
        batches = [_cifar(folder / f"data_batch_{i}.bin") for i in range(1, 6)]
        train = np.concatenate([x for x, _ in batches])
        train_labels = np.concatenate([y for _, y in batches])
        return Images(train, train_labels, *_cifar(folder / "test_batch.bin"))
    return Images(*_idx_pair(folder, "train"), *_idx_pair(folder, "t10k"))


def _digits() -> Images:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError(
            "no images: name a folder with --data, or install scikit-learn for its digits"
        ) from error
    digits: Any = load_digits()
    x = digits.images[..., None]
    y = digits.target.astype(np.int64)
    n = DIGITS_TRAIN
    return Images(x[:n], y[:n], x[n:], y[n:])


def normalised(data: Images) -> Images:
    """Float32 images with mean 0 and variance 1 in every channel of the training set."""
    pixels = (0, 1, 2)
    mean = np.mean(data.train, axis=pixels, dtype=np.float64)
    std = np.std(data.train, axis=pixels, dtype=np.float64)

    def scaled(x: np.ndarray) -> np.ndarray:
        return ((x - mean) / std).astype(np.float32)

    return data._replace(train=scaled(data.train), test=scaled(data.test))


def augment(rng: np.random.Generator, x: np.ndarray, pad: int, flip: bool = True) -> np.ndarray:
    """Every image (B, H, W, C) moved by up to `pad` pixels each way, and mirrored if `flip`.

    Zeros come in from outside; an image is mirrored with probability 1/2."""
    B, H, W, _ = x.shape
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    offsets = rng.integers(0, 2 * pad + 1, (2, B, 1))
    rows = offsets[0] + np.arange(H)  # of the padded image that are cut out, (B, H)
    columns = offsets[1] + np.arange(W)  # (B, W)
    mirrored = flip & (rng.random((B, 1)) < 0.5)
    columns = np.where(mirrored, columns[:, ::-1], columns)
    image = np.arange(B)[:, None, None]
    return padded[image, rows[:, :, None], columns[:, None, :]]
