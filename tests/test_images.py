"""Image files: read back as written, refused when damaged; normalisation, augmentation; training
that resumes bit by bit."""

import gzip
import os
import struct
import sys
import zlib

import fakecupy
import numpy as np
import pytest

from tinygrok.engine.device import Device
from tinygrok.engine.errors import InputError
from tinygrok.engine.optim import SGD
from tinygrok.engine.params import Arena
from tinygrok.models import vision
from tinygrok.models.protocol import TRAINING
from tinygrok.tasks import images
from tinygrok.training.batches import GROUPS, SHARD_IMAGES, ImageBatch, widest_output
from tinygrok.training.checkpoint import load_training, save_training
from tinygrok.training.images import ImageTraining


def idx(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_mnist(folder, train=20, test=7, size=(5, 4), suffix=".gz"):
    rng, written = np.random.default_rng(0), {}
    for part, n in (("train", train), ("t10k", test)):
        for kind, shape in (("images-idx3", (n, *size)), ("labels-idx1", (n,))):
            written[part, kind] = rng.integers(0, 256 if "3" in kind else 10, shape, dtype=np.uint8)
            data = idx(written[part, kind])
            path = folder / f"{part}-{kind}-ubyte{suffix}"
            path.write_bytes(gzip.compress(data) if suffix else data)
    return written


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files_are_read_back(tmp_path, suffix):
    written = write_mnist(tmp_path, suffix=suffix)
    data = images.load(tmp_path)
    assert data.train.shape == (20, 5, 4, 1)
    assert data.test_labels.dtype == np.int64
    np.testing.assert_array_equal(data.train[..., 0], written["train", "images-idx3"])
    np.testing.assert_array_equal(data.test_labels, written["t10k", "labels-idx1"])


DAMAGE = {
    "cut": lambda b: b[:-1],
    "longer": lambda b: b + b"x",
    "empty": lambda b: b"",
    "three bytes": lambda b: b[:3],
    "header only in part": lambda b: b[:9],
    "type": lambda b: b"\0\0\x0d" + b[3:],
    "zeros": lambda b: b"\1" + b[1:],
    "no axes": lambda b: b[:3] + b"\0" + b[4:],
    "many axes": lambda b: b[:3] + b"\xff" + b[4:],
    "count": lambda b: b[:4] + struct.pack(">I", 2**31) + b[8:],
    "labels in place of images": lambda b: idx(np.zeros(20, np.uint8)),
    "another number of images": lambda b: idx(np.zeros((19, 5, 4), np.uint8)),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_damaged_idx_files_are_refused(tmp_path, damage, suffix):
    write_mnist(tmp_path, suffix=suffix)
    path = tmp_path / f"train-images-idx3-ubyte{suffix}"
    data = DAMAGE[damage](gzip.decompress(path.read_bytes()) if suffix else path.read_bytes())
    path.write_bytes(gzip.compress(data) if suffix else data)
    with pytest.raises(InputError) as error:
        images.load(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_damaged_gzip_and_missing_files_are_refused(tmp_path):
    write_mnist(tmp_path)
    path = tmp_path / "train-labels-idx1-ubyte.gz"
    good = path.read_bytes()
    for bad in (
        good[:-5],
        good[:20],
        b"not gzip at all",
        good[:-8] + struct.pack("<I", zlib.crc32(b"other")) + good[-4:],
        gzip.compress(idx(np.full(21, 3, np.uint8))),
        gzip.compress(idx(np.zeros(0, np.uint8))),
    ):
        path.write_bytes(bad)
        with pytest.raises(InputError):
            images.load(tmp_path)


def put(folder, names, classes=10, first=0):
    """IDX files of 30 images under these names, labels first .. first + classes - 1; the images."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(str(folder)))
    found = {}
    for name in names:
        data = rng.integers(0, 256, (30, 4, 5), np.uint8)
        if "labels" in name:
            data = (first + np.arange(30) % classes).astype(np.uint8)
        found[name] = data
        packed = idx(data)
        (folder / name).write_bytes(gzip.compress(packed) if name.endswith(".gz") else packed)
    return found


PLAIN = [
    f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
]
DOTS = [name.replace("-idx", ".idx") for name in PLAIN]
LETTERS = ["emnist-letters-" + name.replace("t10k", "test") + ".gz" for name in PLAIN]
BALANCED = [name.replace("letters", "balanced") for name in LETTERS]


@pytest.mark.parametrize("where", ["", "raw", "FashionMNIST/raw"])
@pytest.mark.parametrize(
    "names", [PLAIN, DOTS, [n + ".gz" for n in PLAIN], [n + ".gz" for n in DOTS], LETTERS]
)
def test_names_and_folders_that_people_have(tmp_path, names, where):
    written = put(tmp_path / where, names)
    data = images.load(str(tmp_path))
    assert data.classes == 10
    for name, found in zip(names, (data.train[..., 0], data.train_labels), strict=False):
        np.testing.assert_array_equal(found, written[name])
    for name, found in zip(names[2:], (data.test[..., 0], data.test_labels), strict=True):
        np.testing.assert_array_equal(found, written[name])


def test_the_exact_name_is_read_and_no_part_of_a_download(tmp_path):
    """Whatever stands beside it, and in whatever order the folder lists it."""
    written = put(tmp_path, PLAIN)
    for name in (*DOTS, *(n + ".gz" for n in PLAIN), *LETTERS, "old-" + PLAIN[0], "a" + PLAIN[1]):
        put(tmp_path, [name])
    for name in PLAIN:
        for wrong in (".part", ".gz.part", ".tmp", ".crdownload", "~", " (1)", ".gz.aria2"):
            (tmp_path / (name + wrong)).write_bytes(b"half")
        (tmp_path / ("." + name + ".part")).write_bytes(b"half")
    data = images.load(tmp_path)
    np.testing.assert_array_equal(data.train[..., 0], written[PLAIN[0]])
    np.testing.assert_array_equal(data.train_labels, written[PLAIN[1]])
    np.testing.assert_array_equal(data.test[..., 0], written[PLAIN[2]])


def test_a_folder_of_the_same_name_is_no_file(tmp_path):
    """As in Kaggle's archive of MNIST: train-images-idx3-ubyte/ beside train-images.idx3-ubyte."""
    written = put(tmp_path, DOTS)
    for name in PLAIN:
        (tmp_path / name).mkdir()
    np.testing.assert_array_equal(images.load(tmp_path).train[..., 0], written[DOTS[0]])


def test_a_file_is_unpacked_by_what_is_in_it(tmp_path):
    """Browsers unpack on the way, and leave the name."""
    written = put(tmp_path, PLAIN)
    for name in PLAIN:
        (tmp_path / name).rename(tmp_path / (name + ".gz"))
    np.testing.assert_array_equal(images.load(tmp_path).train[..., 0], written[PLAIN[0]])


@pytest.mark.parametrize(("first", "classes"), [(0, 26), (1, 26), (0, 62), (0, 2)])
def test_any_number_of_classes(tmp_path, first, classes):
    put(tmp_path, PLAIN, classes, first)
    data = images.load(tmp_path)
    assert data.classes == first + min(classes, 30)
    assert data.train_labels.min() == first
    net = vision.deep_mlp(20, 8, 1, data.classes)
    run = ImageTraining.on_task(net, data, batch=8, device="cpu")
    run.step()
    run.measure()
    with pytest.raises(InputError, match=f"labels must lie in 0..{data.classes - 2}, not"):
        ImageTraining.on_task(vision.deep_mlp(20, 8, 1, data.classes - 1), data).measure()


CAUSES = {
    "no such folder": (lambda d: None, "no such folder"),
    "a file": (lambda d: d.write_bytes(b""), "no such folder"),
    "empty": (lambda d: d.mkdir(), "no images in it"),
    "other files": (lambda d: put(d, ["train.csv"]), "no images in it"),
    "half a pair": (lambda d: put(d, PLAIN[:1] + PLAIN[2:]), "the train labels are missing"),
    "no test": (lambda d: put(d, PLAIN[:2]), "the test images are missing"),
    "half below": (lambda d: put(d / "raw", PLAIN[1:]), "the train images are missing"),
    "several below": (
        lambda d: (put(d / "MNIST" / "raw", PLAIN), put(d / "KMNIST" / "raw", PLAIN)),
        "images in KMNIST/raw, MNIST/raw: name one",
    ),
    "several sets": (
        lambda d: put(d, LETTERS + BALANCED),
        r"several sets \(emnist-balanced-..., emnist-letters-...\)",
    ),
    "cut": (lambda d: put(d, PLAIN) and cut(d / PLAIN[0]), "bytes, but the header announces"),
    "no IDX": (lambda d: put(d, PLAIN) and (d / PLAIN[1]).write_text("<html>"), "not an IDX file"),
    "cut gzip": (
        lambda d: put(d, [n + ".gz" for n in PLAIN]) and cut(d / (PLAIN[0] + ".gz")),
        "cannot be read",
    ),
    "counts": (
        lambda d: put(d, PLAIN) and (d / PLAIN[3]).write_bytes(idx(np.zeros(29, np.uint8))),
        "30 images, but 29 labels in the test set",
    ),
    "swapped": (
        lambda d: put(d, PLAIN) and (d / PLAIN[0]).write_bytes((d / PLAIN[1]).read_bytes()),
        r"train images of shape \(30,\)",
    ),
    "no pixels": (
        lambda d: put(d, PLAIN) and (d / PLAIN[0]).write_bytes(idx(np.zeros((30, 0, 5), np.uint8))),
        r"train images of shape \(30, 0, 5\)",
    ),
    "sizes": (
        lambda d: put(d, PLAIN) and (d / PLAIN[2]).write_bytes(idx(np.zeros((30, 9, 5), np.uint8))),
        r"images of \(4, 5, 1\), but \(9, 5, 1\) to test",
    ),
    "CIFAR beside": (
        lambda d: put(d, PLAIN) and (d / "test_batch.bin").touch(),
        r"several sets \(\.\.\., test_batch.bin\)",
    ),
    "two test sets": (
        lambda d: put(d, PLAIN) and put(d, ["test-images-idx3-ubyte"]),
        "both t10k-images-idx3-ubyte and test-images-idx3-ubyte|both test-images",
    ),
    "a pipe": (lambda d: put(d, PLAIN) and fifo(d / PLAIN[0]), "the train images are missing"),
    "a pipe of CIFAR": (
        lambda d: (d.mkdir(), fifo(d / "test_batch.bin")),
        "No such file|not a regular file",
    ),
    "a bomb": (
        lambda d: put(d, PLAIN) and bomb(d / PLAIN[0], 30),
        "bytes, but the header announces",
    ),
}


def fifo(path):
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def bomb(path, n):
    """A hundred megabytes of zeros in a hundred kilobytes, as the header says."""
    header = idx(np.zeros((0,), np.uint8))[:3] + b"\x03" + struct.pack(">3I", n, 2000, 2000)
    path.write_bytes(gzip.compress(header + bytes(4_000_000 * n), 1))


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize("cause", CAUSES)
def test_each_cause_has_its_message(tmp_path, cause):
    make, says = CAUSES[cause]
    folder = tmp_path / "images"
    make(folder)
    with pytest.raises(InputError, match=says) as error:
        images.load(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def write_cifar(folder, records):
    rng, parts = np.random.default_rng(0), {}
    for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        labels, pixels = (
            rng.integers(0, 10, records, dtype=np.uint8),
            rng.integers(0, 256, (records, 3, 32, 32), dtype=np.uint8),
        )
        (folder / name).write_bytes(
            b"".join(bytes([y]) + x.tobytes() for y, x in zip(labels, pixels, strict=True))
        )
        parts[name] = pixels, labels
    return parts


def test_cifar_files_are_read_back_and_damaged_ones_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "CIFAR_RECORDS", 4)
    parts = write_cifar(tmp_path, 4)
    data = images.load(tmp_path)
    assert data.train.shape == (20, 32, 32, 3)
    assert data.test.shape == (4, 32, 32, 3)
    for i in range(5):
        pixels, labels = parts[f"data_batch_{i + 1}.bin"]
        np.testing.assert_array_equal(data.train[4 * i : 4 * i + 4], pixels.transpose(0, 2, 3, 1))
        np.testing.assert_array_equal(data.train_labels[4 * i : 4 * i + 4], labels)
    path = tmp_path / "data_batch_3.bin"
    good = path.read_bytes()
    for bad in (good[:-1], good[:-3073], good + good[:3073], b"", b"\x0a" + good[1:]):
        path.write_bytes(bad)
        with pytest.raises(InputError, match="data_batch_3"):
            images.load(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match="data_batch_3"):
        images.load(tmp_path)
    write_cifar(tmp_path, 4)
    below = tmp_path / "root" / "cifar-10-batches-bin"
    below.mkdir(parents=True)
    for path in tmp_path.glob("*.bin"):
        path.rename(below / path.name)
    np.testing.assert_array_equal(images.load(tmp_path / "root").train, data.train)
    assert images.CIFAR_RECORDS == 4


@pytest.mark.slow
def test_digits_of_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)  # import fails
    with pytest.raises(InputError, match="--data"):
        images.load(None)
    monkeypatch.undo()
    pytest.importorskip("sklearn")
    data = images.load(None)
    assert data.train.shape == (1500, 8, 8, 1)
    assert data.test.shape == (297, 8, 8, 1)
    assert set(data.test_labels) == set(range(10))


def test_normalisation_is_that_of_the_training_set():
    rng = np.random.default_rng(0)
    train, test = (
        rng.integers(0, 256, (50, 6, 5, 3), dtype=np.uint8),
        np.full((2, 6, 5, 3), 7, np.uint8),
    )
    raw = images.Images(train, np.zeros(50), test, np.zeros(2))
    data = images.normalised(raw)
    assert data.train.dtype == np.float32
    assert data.test.dtype == np.float32
    np.testing.assert_allclose(data.train.mean(axis=(0, 1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(data.train.std(axis=(0, 1, 2)), 1, rtol=1e-6)
    expected = (7 - raw.train.mean(axis=(0, 1, 2))) / raw.train.std(axis=(0, 1, 2))
    np.testing.assert_allclose(data.test[0, 0, 0], expected, rtol=1e-5)


@pytest.mark.parametrize("constant", [np.uint8(0), np.uint8(255), 0.1])
def test_a_channel_without_variance_is_shifted_only(constant):
    """No division by 0: 0 in training, and what differs from it in the test."""
    rng = np.random.default_rng(0)
    train = rng.integers(0, 256, (50, 6, 5, 3)).astype(np.asarray(constant).dtype)
    test = train[:2].copy()
    train[..., 1] = constant
    raw = images.Images(train, np.zeros(50), test, np.zeros(2))
    data = images.normalised(raw)
    np.testing.assert_allclose(data.train[..., 1], 0, atol=1e-6)
    np.testing.assert_allclose(data.train[..., [0, 2]].std(axis=(0, 1, 2)), 1, rtol=1e-6)
    shifted = test[..., 1] - float(constant)
    np.testing.assert_allclose(data.test[..., 1], shifted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [(6, 5), (4, 7)])
def test_augmentation_moves_and_mirrors(size):
    """Every result is a window of the padded image or of its mirror image; all of them occur."""
    x = np.random.default_rng(0).standard_normal((400, *size, 2))
    x[:] = x[0]
    y, pad, (H, W) = images.augment(np.random.default_rng(1), x, 1), 1, size
    padded = np.pad(x[0], ((pad, pad), (pad, pad), (0, 0)))
    windows = [
        padded[i : i + H, j : j + W][:, ::flip]
        for i in range(3)
        for j in range(3)
        for flip in (1, -1)
    ]
    found = [[k for k, window in enumerate(windows) if (window == a).all()] for a in y]
    assert all(len(f) == 1 for f in found)
    assert {f[0] for f in found} == set(range(18))
    still = images.augment(np.random.default_rng(1), x, 0, flip=False)
    np.testing.assert_array_equal(still, x)
    np.testing.assert_array_equal(images.augment(np.random.default_rng(1), x, 1), y)


# -- training --------------------------------------------------------------------------------------


def small(dev, batchnorm=False, count=3 * SHARD_IMAGES, seed=0):
    """A VGG on two classes of noisy stripes."""
    rng = np.random.default_rng(3)
    y = rng.integers(0, 2, 400)
    stripes = np.arange(8) % 2
    x = np.where(
        y[:, None, None, None] == 1, stripes[:, None], stripes[:, None, None]
    ) + rng.standard_normal((400, 8, 8, 1))
    net = vision.vgg((8, 8, 1), 2, (16, "M", 8), batchnorm=batchnorm)
    params, grads = Arena(dev, net.shapes), Arena(dev, net.shapes)
    params.load(net.init(np.random.default_rng(seed), 2**0.5))

    def draw(rng, t):
        pick = rng.integers(0, 300, count)
        return images.augment(rng, x[pick], 1), y[pick]

    optimizer = SGD(dev, params, grads, lr=0.05, momentum=0.9, no_decay=net.no_decay)
    return ImageTraining(dev, net, optimizer, draw, {"test": (x[300:], y[300:])}, seed)


@pytest.mark.slow
@pytest.mark.parametrize("batchnorm", [False, True])
def test_it_learns(dev, batchnorm):
    run = small(dev, batchnorm, 64)
    run.fit(40, log_every=40)
    assert run.history["test_accuracy"][-1] > 0.8
    assert run.history["test_loss"][-1] < 0.4 < run.history["test_loss"][0]


@pytest.mark.parametrize("batchnorm", [False, True])
def test_shards_and_threads_do_not_change_the_gradient(dev, host_dev, batchnorm):
    """As the whole batch in float64 on one thread."""
    a, b = small(host_dev, batchnorm), small(dev, batchnorm)
    assert len(a.batch(1).shards()) == (1 if batchnorm else 4)
    assert a.batch(1).size() == 3 * SHARD_IMAGES
    w = {n: x.copy() for n, x in (a.params.views | a.objective.buffers.views).items()}
    rng = np.random.default_rng(np.random.SeedSequence(0, spawn_key=(3, 1)))
    x, y = a.draw(rng, 1)
    z, tape = a.model.forward(host_dev, w, x, TRAINING)
    loss, cache = a.objective.loss_forward(host_dev, z, y)
    a.model.backward(host_dev, a.objective.loss_backward(host_dev, 1.0, cache), tape, a.grads.views)
    measured = b.objective.gradient(b.grads, b.batch(1))
    tolerance = 1e-10 if dev.dtype == np.float64 else 1e-4
    np.testing.assert_allclose(dev.to_host(measured), loss, rtol=tolerance)
    np.testing.assert_allclose(
        dev.to_host(b.grads.flat), a.grads.flat, rtol=tolerance, atol=tolerance
    )
    buffers = dev.to_host(b.objective.buffers.flat)
    np.testing.assert_allclose(
        buffers,
        np.concatenate([np.ravel(w[n]) for n in a.model.buffers] or [[]]),
        rtol=1e-4,
        atol=1e-6,
    )


@pytest.mark.parametrize("batchnorm", [False, True])
def test_a_step_on_a_gpu_never_waits(batchnorm):
    dev = fakecupy.fake_device("float32")
    run = small(dev, batchnorm, 8)
    run.step()
    batch = run.batch(2)
    with fakecupy.hot(dtype="float32") as counts:
        run.objective.gradient(run.grads, batch)
        run.optimizer.step(2)
    assert counts.syncs == 0
    assert counts.matmul_copies == 0


def of_chain(net, image, count, dev):
    """The number of shards of a batch to train on."""
    rng = np.random.default_rng(0)
    data = rng.standard_normal((count, *image)), rng.integers(0, net.classes, count)
    return len(ImageBatch(dev, net, data, training=True).shards())


def test_shards_are_cut_by_the_bytes_of_the_widest_output(host_dev):
    """8 bytes an entry: 10,000 entries a shard, and 16 images at least; GROUPS shards, or more."""
    narrow = vision.deep_mlp(64, 10, 3, 2)
    assert widest_output(narrow, (8, 8, 1)) == 10
    assert of_chain(narrow, (8, 8, 1), 1000, host_dev) == 1
    wide = vision.deep_mlp(64, 200, 3, 2)
    assert of_chain(wide, (8, 8, 1), 64, host_dev) == 2
    assert of_chain(wide, (8, 8, 1), 200, host_dev) == GROUPS
    # 8 x 8 pixels of 16 channels: fewer than 16 images would be enough.
    convolved = vision.vgg((8, 8, 1), 2, (16,))
    assert widest_output(convolved, (8, 8, 1)) == 1024
    assert of_chain(convolved, (8, 8, 1), 64, host_dev) == 64 // SHARD_IMAGES
    assert of_chain(vision.vgg((8, 8, 1), 2, (16,), batchnorm=True), (8, 8, 1), 64, host_dev) == 1
    tokens = vision.mixer((8, 8, 1), 2, patch=2, width=32, depth=1, hidden=(4, 4))
    assert widest_output(tokens, (8, 8, 1)) == 16 * 32


def test_the_widest_output_is_measured_without_a_trace(host_dev):
    """In a network with BatchNorm; and float32 has twice as many images in a shard."""
    net = vision.deep_mlp(64, 200, 3, 2, norm="batch")
    assert widest_output(net, (8, 8, 1)) == 200
    assert of_chain(net, (8, 8, 1), 100, host_dev) == 1
    single = Device("cpu", np, "float32")
    wide = vision.deep_mlp(64, 200, 3, 2)
    assert of_chain(wide, (8, 8, 1), 120, single) == 1
    assert of_chain(wide, (8, 8, 1), 120, host_dev) == 2


def test_the_number_of_threads_changes_no_bit():
    """Of several shards, in several groups."""
    flat = []
    for threads in (1, 3):
        run = small(Device("cpu", np, "float32", threads), count=5 * SHARD_IMAGES)
        assert len(run.batch(1).shards()) > 2
        run.fit(3, log_every=3)
        flat.append(run.params.flat)
    np.testing.assert_array_equal(*flat)


@pytest.mark.parametrize("batchnorm", [False, True])
def test_resumed_training_is_the_same(host_dev, tmp_path, batchnorm):
    whole, first, second = (small(host_dev, batchnorm) for _ in range(3))
    whole.fit(6, log_every=2)
    first.fit(3, log_every=2, save=lambda run: save_training(tmp_path / "c.npz", run, {"a": 1}))
    load_training(tmp_path / "c.npz", second, {"a": 1})
    second.fit(6, log_every=2)
    np.testing.assert_array_equal(whole.params.flat, second.params.flat)
    np.testing.assert_array_equal(whole.objective.buffers.flat, second.objective.buffers.flat)
    assert whole.history["test_loss"][-1] == second.history["test_loss"][-1]
