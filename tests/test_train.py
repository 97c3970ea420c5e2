"""Training: members equal solo runs, threads and shards do not show, devices agree, resume is
exact."""

import threading

import numpy as np
import pytest
from helpers import small_run

from tinygrok.engine.device import get_device
from tinygrok.engine.errors import InputError
from tinygrok.engine.optim import SGD, AdamW, clip_by_global_norm, cosine, linear_warmup
from tinygrok.engine.params import Arena
from tinygrok.training import batches
from tinygrok.training.checkpoint import CheckpointError, load_training, save_training
from tinygrok.training.loop import NonFiniteLoss


def weights(run):
    return run.params.to_host()


def assert_bitwise(a, b):
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


SETTINGS = {
    "full batch": {},
    "minibatch": {"batch_size": 16},
    "dropout": {"dropout": 0.3},
    "minibatch dropout cross-entropy": {"dropout": 0.2, "batch_size": 16, "loss": "cross_entropy"},
    "own split": {"own_split": True},
    "three terms": {"p": 5, "terms": 3},
    "four terms": {"p": 3, "terms": 4, "dropout": 0.2, "batch_size": 16, "own_split": True},
    "batchnorm": {"batchnorm": True, "decay": 0.0},
    "batchnorm minibatch": {"batchnorm": True, "batch_size": 16, "dropout": 0.1},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_member_equals_solo_run(dev, setting):
    seeds = [0, 1, 5]
    together = small_run(dev, seeds=seeds, **SETTINGS[setting])
    together.fit(6, log_every=3)
    for e, seed in enumerate(seeds):
        alone = small_run(dev, seeds=seed, **SETTINGS[setting])
        alone.fit(6, log_every=3)
        for name, x in weights(alone).items():
            if dev.kind == "cpu":
                np.testing.assert_array_equal(weights(together)[name][e], x)
            else:  # batched and single GEMMs may round differently
                np.testing.assert_allclose(weights(together)[name][e], x, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(
            [row[e] for row in together.history["test_loss"]], alone.history["test_loss"], rtol=1e-5
        )


@pytest.mark.parametrize(
    "more",
    [{}, {"batch_size": 16}, {"batchnorm": True}],
    ids=["full batch", "minibatch", "batchnorm"],
)
def test_members_may_differ_in_everything(dev, more):
    """Learning rate, decay, dropout, data fraction, split and seed: member 1 equals the network
    trained alone."""
    own = {"own_split": True, **more}
    both = small_run(
        dev,
        seeds=[0, 1],
        lr=[0.01, 0.003],
        decay=[0.0, 2.0],
        dropout=[0.0, 0.3],
        fractions=[0.7, 0.4],
        **own,
    )
    alone = small_run(dev, seeds=1, lr=0.003, decay=2.0, dropout=0.3, fractions=[0.4], **own)
    for run in (both, alone):
        run.fit(5)
    for split in ("train", "test"):
        both_losses = [row[1] for row in both.history[f"{split}_loss"]]
        np.testing.assert_allclose(both_losses, alone.history[f"{split}_loss"], rtol=1e-4)
    for name, x in weights(alone).items():
        np.testing.assert_allclose(weights(both)[name][1], x, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("setting", SETTINGS)
def test_devices_agree(dev, host_dev, setting):
    """Ten steps on every device against NumPy float64: same initial bits, same masks, same
    batches."""
    runs = [small_run(d, **SETTINGS[setting]) for d in (dev, host_dev)]
    for run in runs:
        run.fit(10)
    tolerance = 2e-3 if dev.dtype == np.float32 else 1e-9
    for name, x in weights(runs[1]).items():
        np.testing.assert_allclose(weights(runs[0])[name], x, atol=tolerance * np.abs(x).max())


@pytest.mark.parametrize("where", ["caller", "worker"])
def test_map_raises_what_went_wrong(where):
    """In whichever thread; the pool goes on afterwards."""
    device = get_device("cpu", threads=2)
    caller = threading.current_thread()
    both = threading.Barrier(2, timeout=60)

    def work(i):
        both.wait()
        if (threading.current_thread() is caller) == (where == "caller"):
            raise KeyError(where)

    with pytest.raises(KeyError, match=where):
        device.map(work, range(2))
    assert device.map(len, ["a", "bc", "def"]) == [1, 2, 3]


@pytest.mark.parametrize("shard_bytes", [2_000, 700])
def test_result_does_not_depend_on_threads(monkeypatch, shard_bytes):
    """Many shards, more than one to a group: one, two and three threads give the same bits."""
    monkeypatch.setitem(batches.TABLE_SHARD_BYTES, "cpu", shard_bytes)
    results = []
    for threads in (1, 2, 3):
        run = small_run(get_device("cpu", "float32", threads), dropout=0.2)
        assert len(run.full_batch.shards(None)) > 1
        run.fit(10)
        results.append(weights(run))
    assert_bitwise(results[0], results[1])
    assert_bitwise(results[0], results[2])


def test_shards_add_up(host_dev, monkeypatch):
    """The gradient summed over shards is the gradient of the whole batch."""
    whole = small_run(host_dev, dropout=0.2)
    whole_loss = whole.step()
    monkeypatch.setitem(batches.TABLE_SHARD_BYTES, "cpu", 500)
    cut = small_run(host_dev, dropout=0.2)
    assert len(cut.full_batch.shards(None)) > batches.GROUPS
    np.testing.assert_allclose(cut.step(), whole_loss, rtol=1e-12)
    for name, g in whole.grads.to_host().items():
        np.testing.assert_allclose(cut.grads.to_host()[name], g, rtol=1e-9, atol=1e-15)


def test_neurons_add_up(host_dev, monkeypatch):
    """With BatchNorm: the gradient by parts of the neurons is that of all of them at once."""
    whole = small_run(host_dev, batchnorm=True)
    whole_loss = whole.step()
    monkeypatch.setitem(batches.TABLE_SHARD_BYTES, "cpu", 500)
    cut = small_run(host_dev, batchnorm=True)
    np.testing.assert_allclose(cut.step(), whole_loss, rtol=1e-12)
    for name, g in whole.grads.to_host().items():
        np.testing.assert_allclose(cut.grads.to_host()[name], g, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("shard_bytes", [500, 1_200_000])
def test_few_neurons_wake_no_threads(monkeypatch, shard_bytes):
    """Where all activations fit into one shard; the bits are the same for any number of threads."""
    monkeypatch.setitem(batches.TABLE_SHARD_BYTES, "cpu", shard_bytes)
    results = []
    for threads in (1, 2, 3):
        device = get_device("cpu", "float32", threads)
        run = small_run(device, batchnorm=True)
        for _ in range(10):
            run.step()
        results.append(weights(run))
        assert (device._pool is None) == (shard_bytes > 500 or threads == 1)
    assert_bitwise(results[0], results[1])
    assert_bitwise(results[0], results[2])


def test_nothing_waits_for_the_device_inside_a_step():
    """On the strict fake device: no synchronisation and nothing but float32 in a step."""
    import fakecupy

    run = small_run(fakecupy.fake_device("float32"), seeds=[0, 1], dropout=0.2)
    run.step()
    with fakecupy.hot(dtype=np.float32):
        run.step()


def test_minibatches_cover_an_epoch_once(host_dev):
    run = small_run(host_dev, batch_size=10)
    count = run.data[0][1].size // 10
    for first in (1, 1 + count):
        rows = np.concatenate([run.batch(t).data[0][0].T for t in range(first, first + count)])
        assert len(np.unique(rows, axis=0)) == len(rows) == 10 * count
    assert not np.array_equal(run.batch(1).data[0][0], run.batch(1 + count).data[0][0])


# -- resume ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["dropout", "minibatch dropout cross-entropy", "four terms"])
def test_resume_is_bitwise(dev, setting, tmp_path):
    """2n steps = n steps, save, load into a fresh run, n steps: weights, optimiser state and
    history."""
    path, config = tmp_path / "c.npz", {"lr": 0.01}
    straight, first, second = (small_run(dev, **SETTINGS[setting]) for _ in range(3))
    straight.fit(20, log_every=5)
    first.fit(10, log_every=5, save=lambda run: save_training(path, run, config))
    load_training(path, second, config)
    assert second.t == 10
    second.fit(20, log_every=5)
    assert_bitwise(weights(straight), weights(second))
    for kind, arena in straight.optimizer.state.items():
        assert_bitwise(arena.to_host(), second.optimizer.state[kind].to_host())
    for column in straight.history:
        np.testing.assert_array_equal(straight.history[column], second.history[column])


def saved(tmp_path, host_dev, **settings):
    run = small_run(host_dev, **settings)
    run.fit(2)
    path = tmp_path / "c.npz"
    save_training(path, run, {"p": 11})
    return path, run


def test_bad_checkpoints_are_refused(tmp_path, host_dev):
    path, run = saved(tmp_path, host_dev)
    good = path.read_bytes()
    before = weights(run)
    for what, data in {
        "truncated": good[: len(good) // 2],
        "a flipped bit": good[:1000] + bytes([good[1000] ^ 1]) + good[1001:],
        "empty": b"",
        "text": b"hello" * 100,
    }.items():
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match="c.npz") as error:
            load_training(path, run, {"p": 11})
        assert "\n" not in str(error.value), what
    assert_bitwise(before, weights(run))
    with pytest.raises(CheckpointError, match="No such file"):
        load_training(tmp_path / "none.npz", run, {})
    np.savez(path, x=np.ones(3))
    with pytest.raises(CheckpointError, match="not a tinygrok"):
        load_training(path, run, {"p": 11})


def test_every_flipped_byte_is_noticed(tmp_path, host_dev):
    """Damage at 200 places: either refused, or (padding of the archive) without effect on the
    arrays."""
    path, run = saved(tmp_path, host_dev)
    good, before = path.read_bytes(), weights(run)
    rng = np.random.default_rng(0)
    refused = 0
    for i in rng.choice(len(good), 200, replace=False):
        path.write_bytes(good[:i] + bytes([good[i] ^ 0x55]) + good[i + 1 :])
        try:
            load_training(path, run, {"p": 11})
        except CheckpointError:
            refused += 1
        assert_bitwise(before, weights(run))
    assert refused > 150


def test_checkpoint_of_another_run_is_refused(tmp_path, host_dev):
    path, run = saved(tmp_path, host_dev)
    with pytest.raises(CheckpointError, match="p = 11, this run has p = 13"):
        load_training(path, run, {"p": 13})
    with pytest.raises(InputError, match="shape"):
        load_training(path, small_run(host_dev, width=13), {"p": 11})
    with pytest.raises(CheckpointError, match="dtype"):
        load_training(path, small_run(get_device("cpu", "float32", 1)), {"p": 11})


# -- failures and refusals -------------------------------------------------------------------------


def test_stops_at_the_first_loss_that_is_not_finite(dev):
    run = small_run(dev, seeds=[0, 1], lr=[0.01, 1e12])
    with pytest.raises(
        NonFiniteLoss, match=r"step \d+, member 1: the loss is (inf|nan).*(weight|gradient|logits)"
    ):
        run.fit(60, log_every=1)
    assert np.isfinite(weights(run)["W"][0]).all()


def test_refusals(host_dev):
    with pytest.raises(InputError, match="batch size"):
        small_run(host_dev, batch_size=1000)
    with pytest.raises(InputError, match="mse or cross_entropy"):
        small_run(host_dev, loss="hinge")
    arena = Arena(host_dev, {"w": (2,)})
    with pytest.raises(ValueError, match="bias"):
        AdamW(host_dev, arena, arena, no_decay=["bias"])
    with pytest.raises(InputError, match="missing or foreign arrays: w, x"):
        arena.load({"x": np.ones(2)})


def test_stop_ends_after_a_step_and_saves(host_dev):
    run, saves = small_run(host_dev), []
    run.fit(100, stop=lambda: run.t >= 3, save=lambda r: saves.append(r.t))
    assert run.t == 3
    assert saves == [3]


# -- optimisers ------------------------------------------------------------------------------------


def test_schedules():
    assert [linear_warmup(4)(t) for t in (1, 2, 4, 9)] == [0.25, 0.5, 1, 1]
    f = cosine(10, 110, 0.1)
    assert f(5) == 0.5
    assert f(10) == 1
    assert abs(f(60) - 0.55) < 1e-12
    assert abs(f(110) - 0.1) < 1e-12
    assert f(500) == f(110)


def test_clipping(dev):
    """Every member by its own norm over all its tensors; one whose norm is below the limit keeps
    its bits."""
    tensors = {"w": (3, 2), "b": (2,)}
    rng = np.random.default_rng(0)
    arrays = {
        k: rng.standard_normal((2, *s)) * np.array([10.0, 0.01]).reshape(2, *[1] * len(s))
        for k, s in tensors.items()
    }
    grads = Arena(dev, tensors, 2)
    grads.load(arrays)
    before = grads.to_host()
    clip_by_global_norm(dev, grads, 1.0)
    after = grads.to_host()
    norm = np.sqrt(sum((before[k][0].astype(float) ** 2).sum() for k in tensors))
    for k in tensors:
        np.testing.assert_allclose(after[k][0], before[k][0] / norm, rtol=1e-5)
        np.testing.assert_array_equal(after[k][1], before[k][1])
    alone = Arena(dev, tensors)
    alone.load({k: x[0] for k, x in arrays.items()})
    clip_by_global_norm(dev, alone, 1.0)
    for k in tensors:
        np.testing.assert_array_equal(alone.to_host()[k], after[k][0])


@pytest.mark.parametrize("kind", [AdamW, SGD])
def test_no_decay_and_schedule(dev, kind):
    """With zero gradients only decay moves weights; the schedule scales it."""
    params, grads = Arena(dev, {"w": (3, 2), "b": (2,)}), Arena(dev, {"w": (3, 2), "b": (2,)})
    params.load({"w": np.ones((3, 2)), "b": np.ones(2)})
    optimizer = kind(
        dev, params, grads, lr=0.1, weight_decay=0.5, schedule=linear_warmup(2), no_decay=["b"]
    )
    optimizer.step(1)
    np.testing.assert_allclose(params.to_host()["w"], 1 - 0.05 * 0.5, rtol=1e-6)
    np.testing.assert_array_equal(params.to_host()["b"], 1)
