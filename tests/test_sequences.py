"""Training on sequences: shards and threads do not show, devices agree, resume is exact, nothing
waits inside a step."""

import fakecupy
import numpy as np
import pytest

from tinygrok.engine.device import get_device
from tinygrok.engine.optim import AdamW
from tinygrok.engine.params import Arena
from tinygrok.engine.rng import generator
from tinygrok.models.gpt import GPT
from tinygrok.tasks.in_context import InContextData
from tinygrok.training import batches
from tinygrok.training.checkpoint import load_training, save_training
from tinygrok.training.sequences import SequenceTraining


def tiny(dev, positions=None, recompute=False):
    data = InContextData.make(5, 4, 8, 0.6, generator(0, "split"))
    net = GPT.in_context(
        5, 8, 2, 2, 12, activation="gelu", recompute=recompute
    )  # gelu: no kink that float32 could flip
    params, grads = Arena(dev, net.shapes), Arena(dev, net.shapes)
    params.load(net.init(generator(0, "init"), 0.2))
    optimizer = AdamW(
        dev, params, grads, lr=0.01, weight_decay=0.1, no_decay=net.no_decay, clip=0.1
    )
    sets = {
        "held out": data.sequences(
            data.ood_tasks, data.draw_pairs(data.test_pool, 2, generator(0, "probes"))
        )
    }
    positions = np.arange(1, 12, 3) if positions is None else positions
    return SequenceTraining(
        dev, net, optimizer, lambda rng, t: data.batch(16, rng), positions, sets, 0
    )


@pytest.mark.parametrize("positions", [None, [1, 2, 7]], ids=["every y", "uneven"])
def test_devices_agree(dev, host_dev, positions):
    runs = [tiny(d, positions) for d in (dev, host_dev)]
    for run in runs:
        run.fit(5, 5)
    tolerance = 1e-3 if dev.dtype == np.float32 else 1e-10
    for name, x in runs[1].params.to_host().items():
        np.testing.assert_allclose(
            runs[0].params.to_host()[name], x, atol=tolerance * np.abs(x).max(), err_msg=name
        )
    np.testing.assert_allclose(
        runs[0].history["held out_loss"][-1], runs[1].history["held out_loss"][-1], rtol=tolerance
    )


def test_threads_shards_and_recompute(monkeypatch):
    monkeypatch.setitem(batches.TOKEN_SHARD_BYTES, "cpu", 5_000)
    results = []
    for threads, recompute in ((1, False), (3, False), (2, True)):
        run = tiny(get_device("cpu", "float32", threads), recompute=recompute)
        assert len(run.batch(1).shards()) > 3
        run.fit(5, 5)
        results.append(run.params.to_host())
    for other in results[1:]:
        for name, x in results[0].items():
            np.testing.assert_array_equal(other[name], x)


def test_resume_is_bitwise(dev, tmp_path):
    path, config = tmp_path / "c.npz", {"recompute": False}
    straight, first, second = (tiny(dev) for _ in range(3))
    straight.fit(8, 2)
    first.fit(4, 2, save=lambda run: save_training(path, run, config))
    load_training(
        path, second, config | {"recompute": True}
    )  # changes no bit, so it may be switched on
    second.fit(8, 2)
    for name, x in straight.params.to_host().items():
        np.testing.assert_array_equal(second.params.to_host()[name], x)
    for column in straight.history:
        np.testing.assert_array_equal(straight.history[column], second.history[column])


def test_evaluation_in_pieces_on_a_device(monkeypatch):
    """A set too large for the device is measured shard by shard; training takes whole batches."""
    dev = fakecupy.fake_device("float64")
    whole = tiny(dev).measure()
    monkeypatch.setitem(batches.TOKEN_SHARD_BYTES, "cuda", 5_000)
    run = tiny(dev)
    assert len(run.sets["held out"].shards()) > 1
    pieces = run.measure()
    np.testing.assert_allclose(pieces["held out_loss"], whole["held out_loss"], rtol=1e-12)
    run.step()
    assert run.t == 1


def test_nothing_waits_inside_a_step():
    run = tiny(fakecupy.fake_device("float32"))
    run.step()
    batch = run.batch(2)
    with fakecupy.hot(dtype=np.float32):
        run.objective.gradient(run.grads, batch)
        run.optimizer.step(2)
