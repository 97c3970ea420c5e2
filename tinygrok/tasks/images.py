"""Labelled images from the user's files, (Fashion-)MNIST or CIFAR-10, or scikit-learn's digits.

MNIST is read in IDX, CIFAR-10 in its binary version. Nothing is unpickled or executed; every header
and size is checked.
"""

import gzip
import math
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..disk.reader import open_file, refused, room
from ..engine.errors import InputError

CIFAR_RECORDS = 10_000  # in every file
CIFAR_BYTES = 1 + 3 * 32 * 32  # of a record: the label, then red, green and blue
CIFAR_TEST = "test_batch.bin"
DIGITS_TRAIN = 1500  # of scikit-learn's 1797
# Of MNIST and its kin: train-images-idx3-ubyte, train-images.idx3-ubyte.gz, and EMNIST's
# emnist-letters-test-labels-idx1-ubyte. What is no whole name, .part or .tmp, is not read.
IDX_NAME = re.compile(r"(.*)(train|t10k|test)-(images|labels)[-.]idx[13]-ubyte(\.gz)?")


class Images(NamedTuple):
    """Images (n, H, W, C) and labels (n,) for training and for testing.

    classes   the largest label + 1 (27 for EMNIST's letters, whose labels start at 1)
    """

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray

    @property
    def classes(self) -> int:
        return int(max(self.train_labels.max(), self.test_labels.max())) + 1


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A file, unpacked on the way where it is gzipped."""
    with refused(path), open_file(path) as file:
        is_packed = file.peek(2)[:2] == b"\x1f\x8b"
        yield gzip.GzipFile(fileobj=file) if is_packed else file


def read_idx(path: Path) -> np.ndarray:
    """The array in an IDX file of unsigned bytes, plain or gzipped.

    Two zeros, type 8, number of axes, big-endian sizes, the bytes."""
    with _opened(path) as file:
        start = file.read(4)
        axes = start[3] if start[:3] == b"\0\0\x08" and len(start) == 4 else 0
        sizes = file.read(4 * axes)
        if not 1 <= axes <= 4 or len(sizes) < 4 * axes:
            raise InputError(f"{path}: not an IDX file of unsigned bytes")
        shape = struct.unpack(f">{axes}I", sizes)
        size = math.prod(shape)
        data = file.read(size + 1) if size <= room(path) else b""
    if len(data) != size:
        found = "more" if len(data) > size else len(data)
        raise InputError(f"{path}: {found} bytes, but the header announces an array of {shape}")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _idx_files(folder: Path) -> dict[str, dict[str, Path]]:
    """{what stands before train or test in the names: {"train images": file, ...}}.

    Of names for the same thing the shortest, then -idx before .idx: never as a folder lists them.
    """
    found: dict[str, dict[str, Path]] = {}
    paths = [path for path in folder.glob("*-ubyte*") if path.is_file()]
    for path in sorted(paths, key=lambda path: (len(path.name), path.name)):
        if name := IDX_NAME.fullmatch(path.name):
            part = "train" if name[2] == "train" else "test"
            first = found.setdefault(name[1], {}).setdefault(f"{part} {name[3]}", path)
            if name[2] not in first.name:
                raise InputError(f"{folder}: both {first.name} and {path.name}, for one test set")
    return found


def _idx_pair(folder: Path, files: dict[str, Path], part: str) -> tuple[np.ndarray, np.ndarray]:
    for kind in ("images", "labels"):
        if f"{part} {kind}" not in files:
            raise InputError(f"{folder}: the {part} {kind} are missing beside the other files")
    x = read_idx(files[f"{part} images"])
    y = read_idx(files[f"{part} labels"])
    if x.ndim != 3 or y.ndim != 1 or 0 in x.shape:
        raise InputError(f"{folder}: {part} images of shape {x.shape}, labels of shape {y.shape}")
    if len(x) != len(y):
        raise InputError(f"{folder}: {len(x)} images, but {len(y)} labels in the {part} set")
    return x[..., None], y.astype(np.int64)


def _cifar(path: Path) -> tuple[np.ndarray, np.ndarray]:
    size = CIFAR_RECORDS * CIFAR_BYTES
    with _opened(path) as file:
        data = np.frombuffer(file.read(size + 1), np.uint8)
    if data.size != size or data[::CIFAR_BYTES].max() > 9:
        raise InputError(f"{path}: not {CIFAR_RECORDS} records of a label 0..9 and 3072 bytes")
    records = data.reshape(-1, CIFAR_BYTES)
    planes = records[:, 1:].reshape(-1, 3, 32, 32)  # (n, C, H, W)
    return planes.transpose(0, 2, 3, 1), records[:, 0].astype(np.int64)


def load(folder: str | Path | None = None) -> Images:
    """The images in a folder, told by the names of its files; None: scikit-learn's digits.

    Or in torchvision's folders below it, where only one holds images. Any number of classes; labels
    are those of the files. Of the 1797 digits of 8 x 8 the last 297 are for testing. Raises
    InputError where there is no such folder, no images in it or several sets, where a file is
    missing or damaged, and where the numbers of images and labels differ.

    >>> load("no/such/folder")
    Traceback (most recent call last):
    tinygrok.engine.errors.InputError: no/such/folder: no such folder
    """
    if folder is None:
        return _digits()
    folder = Path(folder)
    if not os.path.isdir(folder):
        raise InputError(f"{folder}: no such folder")
    folder = _place(folder)
    sets = _idx_files(folder)
    is_cifar = (folder / CIFAR_TEST).exists()
    if (sets and is_cifar) or (len(sets) > 1 and "" not in sets):
        names = ", ".join(f"{name}..." for name in sorted(sets))
        names += f", {CIFAR_TEST}" if is_cifar else ""
        raise InputError(f"{folder}: several sets ({names}): give one a folder of its own")
    if is_cifar:
        batches = [_cifar(folder / f"data_batch_{i}.bin") for i in range(1, 6)]
        train = np.concatenate([x for x, _ in batches])
        train_labels = np.concatenate([y for _, y in batches])
        return Images(train, train_labels, *_cifar(folder / CIFAR_TEST))
    files = sets.get("") or next(iter(sets.values()))
    data = Images(*_idx_pair(folder, files, "train"), *_idx_pair(folder, files, "test"))
    sizes = (data.train.shape[1:], data.test.shape[1:])
    if sizes[0] != sizes[1]:
        raise InputError(f"{folder}: images of {sizes[0]}, but {sizes[1]} to test")
    return data


def _place(folder: Path) -> Path:
    """The folder itself where it holds images, else the only one of torchvision's below it."""
    below = [folder / "raw", folder / "cifar-10-batches-bin", *sorted(folder.glob("*/raw"))]
    for places in ([folder], below):
        found = [p for p in places if (p / CIFAR_TEST).exists() or _idx_files(p)]
        if len(found) > 1:
            names = ", ".join(str(p.relative_to(folder)) for p in found)
            raise InputError(f"{folder}: images in {names}: name one of these folders")
        if found:
            return found[0]
    known = "train-images-idx3-ubyte and its kin, or CIFAR-10's test_batch.bin"
    raise InputError(f"{folder}: no images in it ({known})")


def _digits() -> Images:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        install = "pip install 'tinygrok[digits]'"
        advice = f"name a folder of images (--data), or get scikit-learn's digits: {install}"
        raise InputError(advice) from error
    digits: Any = load_digits()
    x = digits.images[..., None]
    y = digits.target.astype(np.int64)
    n = DIGITS_TRAIN
    return Images(x[:n], y[:n], x[n:], y[n:])


def normalised(data: Images) -> Images:
    """Float32 images with mean 0 and variance 1 in every channel of the training set.

    A channel that is the same everywhere in training has no variance: it is only shifted to 0."""
    pixels = (0, 1, 2)
    mean = np.mean(data.train, axis=pixels, dtype=np.float64)
    std = np.std(data.train, axis=pixels, dtype=np.float64)
    std = np.where(np.ptp(data.train, axis=pixels) > 0, std, 1)

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
