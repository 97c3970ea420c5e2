"""What comes from disk is looked at before it is read: one line for whatever is wrong, soon, and
without memory for it."""

import io
import json
import os
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from tinygrok.disk import reader
from tinygrok.engine.errors import InputError
from tinygrok.engine.optim import AdamW
from tinygrok.models.interop import from_torch_state_dict
from tinygrok.models.mlp import TwoLayerNet
from tinygrok.tasks import addition, images
from tinygrok.training.checkpoint import (
    FORMAT,
    CheckpointError,
    load_arrays,
    load_training,
    load_weights,
    save_arrays,
    save_training,
)
from tinygrok.training.tables import Training

CONFIG = {"p": 5}
STATE = {"fc1.weight": np.ones((6, 10), "float32"), "fc2.weight": np.ones((5, 6), "float32")}


def small_run():
    net = TwoLayerNet(5, 6)
    return Training.on_task(net, addition(5), device="cpu", optimizer=AdamW)


@pytest.fixture
def saved(tmp_path):
    """(path, meta, arrays, run that was saved after three steps)"""
    run = small_run()
    run.fit(3, 1)
    path = tmp_path / "c.npz"
    save_training(path, run, CONFIG)
    return path, *load_arrays(path), run


def refused(read, match="."):
    with pytest.raises(InputError, match=match) as error:
        read()
    text = str(error.value)
    assert text.isprintable()
    assert len(text) < 500


def npy(x, shape=None):
    """The bytes of an array, under a header of another shape."""
    file = io.BytesIO()
    header = np.lib.format.header_data_from_array_1_0(x)
    np.lib.format.write_array_header_1_0(file, header | {"shape": shape or x.shape})
    return file.getvalue() + x.tobytes()


def write_zip(path, members, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)


META = npy(np.frombuffer(json.dumps({"format": FORMAT}).encode(), np.uint8))
READERS = {
    "checkpoint.npz": load_arrays,
    "weights.npz": load_weights,
    "training.npz": lambda path: load_training(path, small_run(), CONFIG),
    "state.npz": from_torch_state_dict,
    "state.safetensors": from_torch_state_dict,
    "config.json": reader.read_json,
    "train-images-idx3-ubyte": images.read_idx,
}


@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file_is_refused(tmp_path, name):
    """A pipe would wait for ever."""
    path = tmp_path / name
    refused(lambda: READERS[name](path), f"{name}: .*No such file")
    path.mkdir()
    refused(lambda: READERS[name](path), f"{name}: .*not a regular file")
    path.rmdir()
    os.mkfifo(path)
    refused(lambda: READERS[name](path), f"{name}: .*not a regular file")


ONES = npy(np.ones(4))
ODD_ARCHIVES = {
    "other compression": ([("a.npy", ONES)], zipfile.ZIP_LZMA, "not packed as NumPy"),
    "control bytes": ([("a\a.npy", ONES)], 0, "control characters"),
    "a folder": ([("a/", b"")], 0, "."),
    "text": ([("a.npy", b"text" * 9)], 0, "magic"),
    "objects": ([("a.npy", npy(np.zeros(1, "O"), (1,)))], 0, "no array of object"),
    "strings": ([("a.npy", npy(np.array(["x"])))], 0, "no array of <U1"),
    "terabytes": ([("a.npy", npy(np.ones(4), (10**12,)))], 0, r"no array of float64 \(10+,\)"),
    "fewer": ([("a.npy", npy(np.ones(4), (2,)))], 0, "32 bytes are no array"),
    "below 0": ([("a.npy", npy(np.ones(4), (-2, -2)))], 0, "."),
    "beyond all": ([("a.npy", npy(np.ones(0), (0, 10**30)))], 0, "."),
}


@pytest.mark.parametrize("odd", ODD_ARCHIVES)
def test_odd_archives_are_refused_before_memory_is_taken(tmp_path, odd):
    members, method, match = ODD_ARCHIVES[odd]
    for name in ("checkpoint.npz", "state.npz"):
        path = tmp_path / name
        write_zip(path, [("meta.npy", META), *members], method)
        tracemalloc.start()
        refused(lambda path=path, name=name: READERS[name](path), match)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 50_000_000


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_a_name_are_refused(tmp_path):
    for twice in ("a.npy", "meta.npy", "a"):
        write_zip(tmp_path / "c.npz", [("meta.npy", META), ("a.npy", ONES), (twice, ONES)])
        refused(lambda: load_arrays(tmp_path / "c.npz"), "a name stands twice")


def test_what_unpacks_to_much_more_than_the_file_is_refused(tmp_path, monkeypatch):
    """Zeros, a thousand times smaller on disk; weights that were packed are read."""
    zeros = np.zeros(10**7)
    np.savez_compressed(tmp_path / "s.npz", **STATE)
    for name in STATE:
        np.testing.assert_array_equal(reader_arrays(tmp_path / "s.npz")[name], STATE[name])
    monkeypatch.setattr(reader, "SMALL", 10_000)
    assert set(reader_arrays(tmp_path / "s.npz")) == set(STATE)
    np.savez_compressed(tmp_path / "s.npz", **STATE, zeros=zeros)
    tracemalloc.start()
    refused(lambda: from_torch_state_dict(tmp_path / "s.npz"), "would unpack to more than")
    assert tracemalloc.get_traced_memory()[1] < 50_000_000
    tracemalloc.stop()


def reader_arrays(path):
    with reader.open_arrays(path) as (headers, read):
        return {name: read(name) for name in headers}


def test_no_member_is_hidden_by_a_flipped_bit(tmp_path):
    """Refused, or the same arrays."""
    path = tmp_path / "c.npz"
    save_arrays(path, {"step": 1}, {"a": np.arange(3.0), "b": np.ones((2, 2), "float32")})
    good = path.read_bytes()
    _, before = load_arrays(path)
    refusals = 0
    for i in range(len(good) - 300, len(good)):  # the directory of the archive
        path.write_bytes(good[:i] + bytes([good[i] ^ 1 << i % 8]) + good[i + 1 :])
        try:
            _, found = load_arrays(path)
        except CheckpointError:
            refusals += 1
            continue
        assert found.keys() == before.keys()
        for name, x in before.items():
            np.testing.assert_array_equal(found[name], x)
    assert refusals > 150


ODD_META = {
    "deep": (b'{"format":' + b"[" * 100_000, "recursion"),
    "a list": (b"[1]", "not an object in JSON"),
    "twice": (b'{"format": 1, "format": 2}', "a name stands twice"),
    "control bytes": (b'{"format\\u001b[2J": 1}', "control characters"),
    "another format": (b'{"format": "a\\n\\u001b[2Jb"}', r"format a \[2Jb, this reads"),
    "no format": (b"{}", "format None"),
    "no text": (b"\xff\xfe\xfd", "truncated or corrupted"),
    "config": (json.dumps({"format": FORMAT, "config": [1]}).encode(), "is no dictionary"),
}


@pytest.mark.parametrize("odd", ODD_META)
def test_odd_settings_in_a_checkpoint_are_refused(tmp_path, odd):
    text, match = ODD_META[odd]
    np.savez(tmp_path / "c.npz", meta=np.frombuffer(text, np.uint8))
    refused(lambda: load_arrays(tmp_path / "c.npz"), match)
    np.savez(tmp_path / "c.npz", meta=np.ones(3))
    refused(lambda: load_arrays(tmp_path / "c.npz"), "not a tinygrok checkpoint")


def without(d, *names):
    return {name: x for name, x in d.items() if name not in names}


ODD_RUNS = {
    "step 1.5": (lambda m, a: (m | {"step": 1.5}, a), "step 1.5 is none"),
    "step true": (lambda m, a: (m | {"step": True}, a), "step True is none"),
    "step -1": (lambda m, a: (m | {"step": -1}, a), "step -1 is none"),
    "step text": (lambda m, a: (m | {"step": "3"}, a), "step 3 is none"),
    "step huge": (lambda m, a: (m | {"step": 10**300}, a), "step 10+ ... 0+ is none"),
    "no step": (lambda m, a: (without(m, "step"), a), "step None is none"),
    "step too early": (lambda m, a: (m | {"step": 2}, a), "not that of its history"),
    "history out of order": (
        lambda m, a: (m, a | {"history/step": a["history/step"][::-1]}),
        "not that of its history",
    ),
    "history of floats": (
        lambda m, a: (m, a | {"history/step": a["history/step"] + 0.5}),
        "a row for every",
    ),
    "a short column": (
        lambda m, a: (m, a | {"history/test_loss": a["history/test_loss"][1:]}),
        "a row for every",
    ),
    "no steps": (lambda m, a: (m, without(a, "history/step")), "a row for every"),
    "no history": (
        lambda m, a: (m, {k: x for k, x in a.items() if "history" not in k}),
        "a row for every",
    ),
    "nan": (lambda m, a: (m, a | {"weight/W": a["weight/W"] * np.nan}), "weight/W is not finite"),
    "foreign": (lambda m, a: (m, a | {"weight/V": np.ones(3)}), "foreign arrays: weight/V"),
    "missing": (lambda m, a: (m, without(a, "weight/W")), "missing or foreign arrays: weight/W"),
    "shape": (lambda m, a: (m, a | {"weight/W": a["weight/W"].T}), r"shape \(6, 5\), got \(5, 6\)"),
    "dtype": (lambda m, a: (m, a | {"weight/W": a["weight/W"].astype(int)}), "another dtype"),
    "no such hyperparameter": (
        lambda m, a: (m | {"hyperparameters": [[1, {"step": 0}]]}, a),
        "truncated or corrupted .'step'",
    ),
    "hyperparameter": (
        lambda m, a: (m | {"hyperparameters": [[1, {"lr": [[1]]}]]}, a),
        "lr = .*is",
    ),
    "hyperparameters": (lambda m, a: (m | {"hyperparameters": [5]}, a), "truncated or corrupted"),
    "settings": (
        lambda m, a: (m | {"config": {"p": "a\n" + "b" * 999}}, a),
        "was made with p = a bbb",
    ),
}


@pytest.mark.parametrize("odd", ODD_RUNS)
def test_odd_checkpoints_of_a_run_are_refused_and_leave_it_as_it_was(saved, odd):
    path, meta, arrays, run = saved
    change, match = ODD_RUNS[odd]
    save_arrays(path, *change(meta, arrays))
    before = run.params.flat.copy()
    history = {name: list(column) for name, column in run.history.items()}
    refused(lambda: load_training(path, run, CONFIG), match)
    np.testing.assert_array_equal(run.params.flat, before)
    assert run.t == 3
    assert repr(run.history) == repr(history)


def test_a_checkpoint_is_read_twice_and_hyperparameters_stay(saved):
    """Also betas, a tuple, which JSON gives back as a list."""
    path, *_, run = saved
    before = run.optimizer.hyperparameters()
    for _ in range(2):
        load_training(path, run, CONFIG)
        assert run.optimizer.hyperparameters() == before
        assert len(run.note_hyperparameters()) == 1


def test_a_run_that_diverged_says_so(saved):
    path, meta, arrays, run = saved
    nan = arrays | {"weight/W": arrays["weight/W"] * np.nan}
    save_arrays(path, meta | {"whole": False}, nan)
    load_training(path, run, CONFIG)
    assert np.isnan(run.params["W"]).all()
    assert not run.whole


def test_weights_alone_are_read(tmp_path):
    """Nothing else in the file is looked into, and not even they where shapes are others."""
    path = tmp_path / "c.npz"
    arrays = {"weight/W": np.arange(5000.0), "optimizer.m/W": np.arange(5000.0) + 0.5}
    save_arrays(path, {"config": CONFIG}, arrays)

    def flip(name):
        data = bytearray(path.read_bytes())
        data[data.index(arrays[name].tobytes()[-100:])] ^= 1
        path.write_bytes(data)

    flip("optimizer.m/W")
    refused(lambda: load_arrays(path), "CRC-32")
    settings, weights = load_weights(path, lambda config, headers: {"W": (5000,)})
    assert settings == CONFIG
    np.testing.assert_array_equal(weights["W"], arrays["weight/W"])
    flip("weight/W")
    refused(lambda: load_weights(path), "CRC-32")
    refused(lambda: load_weights(path, lambda config, headers: {"W": (5,)}), "expected shape")
    refused(lambda: load_weights(path, lambda config, headers: {"V": (5,)}), "foreign arrays: V, W")


def safetensors(header, body):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(shape, first, last, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


ODD_SAFETENSORS = {
    "deep": safetensors(b'{"a":' * 100_000, b""),
    "twice": safetensors(b'{"a": 1, "a": 2}', bytes(8)),
    "overlap": safetensors({"a": entry([2], 0, 8), "b": entry([2], 0, 8)}, bytes(8)),
    "a gap": safetensors({"a": entry([2], 0, 8), "b": entry([2], 12, 20)}, bytes(20)),
    "terabytes": safetensors({"a": entry([10**12], 0, 4 * 10**12)}, bytes(8)),
    "shape": safetensors({"a": entry([3], 0, 8)}, bytes(8)),
    "backwards": safetensors({"a": entry([2], 8, 0)}, bytes(8)),
    "text": safetensors({"a": entry("x", 0, 8)}, bytes(8)),
    "fractions": safetensors({"a": entry([2], 0.0, 8.0)}, bytes(8)),
    "no entry": safetensors({"a": 5}, bytes(8)),
    "control bytes": safetensors({"a\a": entry([2], 0, 8)}, bytes(8)),
    "nothing": struct.pack("<Q", 2) + b"[]",
    "long header": struct.pack("<Q", 2**63) + b"{}",
    "kind": safetensors({"a": entry([8], 0, 8, "F8_E4M3")}, bytes(8)),
}


@pytest.mark.parametrize("odd", ODD_SAFETENSORS)
def test_odd_safetensors_are_refused(tmp_path, odd):
    path = tmp_path / "s.safetensors"
    path.write_bytes(ODD_SAFETENSORS[odd])
    refused(lambda: from_torch_state_dict(path), "s.safetensors: cannot be read")


def test_weights_that_are_not_finite_are_refused_in_a_state_dict():
    wrong = STATE | {"fc2.weight": STATE["fc2.weight"] * np.inf}
    refused(lambda: from_torch_state_dict(wrong), "fc2.weight is not finite")
    refused(lambda: from_torch_state_dict(STATE | {"a\n\a" * 99: np.ones(2)}), "foreign arrays: a")
