"""Files that were damaged on disk: how, and what their readers make of them.

A reader refuses a damaged file in one line, or what it loads is what it loaded before. Formats that
have no checksum (a plain IDX file, the numbers of a .safetensors) cannot know of a changed number:
there the rule holds for everything but the numbers themselves."""

import gzip
import json
import struct
import warnings
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from stress_runs import Failure, require

from tinygrok.engine.errors import InputError

# -- ways to damage --------------------------------------------------------------------------------


def flipped(data: bytes, rng) -> bytes:
    """One bit is another."""
    place = int(rng.integers(len(data)))
    return _replaced(data, place, bytes([data[place] ^ 1 << int(rng.integers(8))]))


def flipped_at_an_end(data: bytes, rng) -> bytes:
    """One bit of the first or last 300 bytes: headers and directories."""
    place = int(rng.integers(min(300, len(data))))
    place = place if rng.random() < 0.5 else len(data) - 1 - place
    return _replaced(data, place, bytes([data[place] ^ 1 << int(rng.integers(8))]))


def truncated(data: bytes, rng) -> bytes:
    return data[: int(rng.integers(len(data)))]


def without_a_piece(data: bytes, rng) -> bytes:
    first, last = _piece(data, rng)
    return data[:first] + data[last:]


def piece_twice(data: bytes, rng) -> bytes:
    first, last = _piece(data, rng)
    return data[:last] + data[first:]


def twice(data: bytes, rng) -> bytes:
    return data + data


def zeroed(data: bytes, rng) -> bytes:
    """As a crash of the machine leaves a block."""
    first, last = _piece(data, rng)
    return _replaced(data, first, bytes(last - first))


def noise(data: bytes, rng) -> bytes:
    return rng.bytes(len(data))


def another_digit(data: bytes, rng) -> bytes:
    """A digit of a text, a member's name or a number: still of the right form."""
    digits = [i for i, byte in enumerate(data) if chr(byte).isdigit()]
    if not digits:
        return flipped(data, rng)
    place = digits[int(rng.integers(len(digits)))]
    other = (data[place] - 48 + int(rng.integers(1, 10))) % 10
    return _replaced(data, place, bytes([48 + other]))


def member_twice(data: bytes, rng) -> bytes:
    """One member of an archive again, with other numbers and a right checksum; one name of a JSON
    object again, with another value."""
    if data[:2] == b"PK":
        return _member_again(data, rng)
    try:
        names = [name for name in json.loads(data) if isinstance(name, str)]
    except ValueError:
        names = []
    if data[:1] != b"{" or not names:
        return twice(data, rng)
    name = names[int(rng.integers(len(names)))]
    return data.rstrip()[:-1] + b", " + json.dumps(name).encode() + b": 7}"


def _member_again(data: bytes, rng) -> bytes:
    file = BytesIO(data)
    with zipfile.ZipFile(file, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of a name that is there
        infos = archive.infolist()
        info = infos[int(rng.integers(len(infos)))]
        other = bytearray(archive.read(info))
        other[-1] ^= 1
        archive.writestr(info.filename, bytes(other))
    return file.getvalue()


def nothing_left(data: bytes, rng) -> bytes:
    return b""


def _piece(data: bytes, rng) -> tuple[int, int]:
    first = int(rng.integers(len(data)))
    return first, min(len(data), first + int(rng.integers(1, 600)))


def _replaced(data: bytes, place: int, piece: bytes) -> bytes:
    return data[:place] + piece + data[place + len(piece) :]


DAMAGES = [
    flipped,
    flipped_at_an_end,
    truncated,
    without_a_piece,
    piece_twice,
    twice,
    zeroed,
    noise,
    another_digit,
    member_twice,
    nothing_left,
]


def damage(path: Path, rng, others: list[Path] = []) -> str:  # noqa: B006  never changed
    """Damage a file in place, or put another of its kind in its place; says how.

    others   files of the same kind"""
    data = path.read_bytes()
    ways = [*DAMAGES, *others] if data else [nothing_left]
    way = ways[int(rng.integers(len(ways)))]
    if isinstance(way, Path):
        path.write_bytes(way.read_bytes())
        return f"{path.name}: another file, {way.name}, in its place"
    path.write_bytes(way(data, rng))
    return f"{path.name}: {way.__name__.replace('_', ' ')}"


# -- readers ---------------------------------------------------------------------------------------


class Readable(NamedTuple):
    """A file, what reads it, and how many of its first bytes say what the others are: where it is
    longer, its numbers have no checksum."""

    path: Path
    read: Callable
    header: int | None = None


def sound_files(folder: Path) -> dict[str, Readable]:
    """{kind: a sound file with its reader}, written into a folder."""
    return {**_checkpoints(folder), **_state_dicts(folder), **_images(folder), **_answers(folder)}


def _checkpoints(folder: Path) -> dict[str, Readable]:
    import tinygrok as tg
    from tinygrok.training.checkpoint import load_arrays, load_training, load_weights

    def new():
        net = tg.TwoLayerNet(p=5, width=6)
        return tg.Training.on_task(net, tg.addition(5), device="cpu")

    def training(path):
        run = new()
        load_training(path, run, {"p": 5})
        state = {name: arena.to_host() for name, arena in run.optimizer.state.items()}
        record = {name: np.array(column) for name, column in run.history.items()}
        return run.t, run.whole, run.hyperparameters, run.params.to_host(), state, record

    run = new()
    run.fit(3, 1)
    path = folder / "checkpoint.npz"
    tg.save_training(path, run, {"p": 5})
    return {
        "checkpoint of a run": Readable(path, training),
        "arrays of a checkpoint": Readable(path, load_arrays),
        "weights of a checkpoint": Readable(path, load_weights),
    }


def _state_dicts(folder: Path) -> dict[str, Readable]:
    from _ground_truth_files import save_safetensors

    import tinygrok as tg
    from tinygrok.engine.rng import generator
    from tinygrok.models.interop import to_torch_state_dict

    def read(path):
        model, weights = tg.from_torch_state_dict(path)
        return repr(model), weights

    net = tg.TwoLayerNet(p=5, width=6)
    weights = net.init(generator(0, "init"))
    state = to_torch_state_dict(net, weights)
    np.savez(folder / "state.npz", **state)
    np.savez_compressed(folder / "packed.npz", **state)
    path = folder / "state.safetensors"
    save_safetensors(path, net, weights)
    header = 8 + struct.unpack("<Q", path.read_bytes()[:8])[0]
    return {
        "state dictionary, .npz": Readable(folder / "state.npz", read),
        "state dictionary, packed .npz": Readable(folder / "packed.npz", read),
        "state dictionary, .safetensors": Readable(path, read, header),
    }


def write_images(folder: Path, opened: Callable = open) -> None:
    """24 random images of 4 x 4 in three classes, as MNIST's files."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    packed = ".gz" if opened is gzip.open else ""
    for part in ("train", "t10k"):
        pixels = rng.integers(0, 256, (24, 4, 4), dtype=np.uint8)
        labels = (np.arange(24) % 3).astype(np.uint8)
        for name, axes, x in (("images-idx3", 3, pixels), ("labels-idx1", 1, labels)):
            header = bytes([0, 0, 8, axes]) + struct.pack(f">{axes}I", *x.shape)
            with opened(folder / f"{part}-{name}-ubyte{packed}", "wb") as file:
                file.write(header + x.tobytes())


def _images(folder: Path) -> dict[str, Readable]:
    from tinygrok.tasks import images

    def read(path):
        return images.load(path.parent)

    files = {}
    for kind, opened in (("plain", open), ("gzipped", gzip.open)):
        write_images(folder / kind, opened)
        for path in sorted((folder / kind).iterdir()):
            if path.name.startswith("train"):
                axes = 3 if "idx3" in path.name else 1
                header = 4 + 4 * axes if kind == "plain" else None
                what = path.name.split("-")[1]
                files[f"{what}, {kind} IDX"] = Readable(path, read, header)
    return files


def _answers(folder: Path) -> dict[str, Readable]:
    """JSON that a user writes: any other number in it is as good; it only has to be understood."""
    from _ground_truth_files import score

    path = folder / "answers.json"
    neurons = [
        {"neuron": k, "role": "wave", "frequency": k, "phase": [0.1, 0, 1]} for k in range(3)
    ]
    faults = [{"kind": "memorises", "pair": [1, 2]}, {"kind": "flipped", "neurons": [1]}]
    path.write_text(json.dumps({"p": 7, "width": 3, "neurons": neurons, "faults": faults}))
    truth = folder / "truth.json"
    truth.write_text(path.read_text())

    def read(path):
        score(path, truth, 0.1)

    return {"a claim about ground truth": Readable(path, read)}


def try_reading(file: Readable, rng) -> str:
    """Damage a file, read it, and put it back. "refused" or "no effect"; Failure otherwise."""
    before = _fingerprint(file.read(file.path))
    sound = file.path.read_bytes()
    how = damage(file.path, rng)
    damaged = file.path.read_bytes()
    try:
        after = _fingerprint(file.read(file.path))
    except InputError as error:
        require(str(error).isprintable(), f"{how}: refused in more than a line: {error}")
        return "refused"
    except Exception as error:
        raise Failure(f"{how}: {type(error).__name__}: {error}") from error
    finally:
        file.path.write_bytes(sound)
    header = sound[: file.header]
    numbers = file.header and damaged[: len(header)] == header and len(damaged) == len(sound)
    require(after == before or numbers, f"{how}: read as something else")
    return "no effect" if after == before else "a number"


def _fingerprint(x):
    """Everything in x, as what can be compared."""
    if isinstance(x, np.ndarray):
        return x.dtype.str, x.shape, x.tobytes()
    if isinstance(x, dict):
        return {name: _fingerprint(value) for name, value in x.items()}
    if isinstance(x, list | tuple):
        return [_fingerprint(value) for value in x]
    return x
