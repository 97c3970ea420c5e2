"""Weights over time: --keep-every, and the film that is made of them."""

import numpy as np
import pytest

import grok_addition  # isort: skip
import corrupted_labels  # isort: skip
import _film  # isort: skip
from tinygrok.disk import writer
from tinygrok.engine.errors import InputError
from tinygrok.training import checkpoint
from tinygrok.training.checkpoint import load_arrays, load_weights
from tinygrok.training.tables import Training

SMALL = "--p 11 --width 8 --threads 1 --no-plot --log-every 5"


def train(flags, out, example=grok_addition):
    return example.main([*SMALL.split(), *flags.split(), "--out", str(out)])


def kept(out):
    """{step: weights}"""
    found = {}
    for path in sorted((out / "weights").iterdir()):
        meta, _ = load_arrays(path)
        assert path.name == f"step_{meta['step']:08}.npz"
        found[meta["step"]] = load_weights(path)[1]
    return found


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for step, weights in one.items():
        for name, x in weights.items():
            np.testing.assert_array_equal(x, other[step][name], err_msg=f"{name}, step {step}")


def test_weights_at_regular_steps_and_going_on(tmp_path):
    """The first and the last among them are those of the run; --resume keeps the others."""
    train("--steps 12 --keep-every 3", tmp_path / "whole")
    whole = kept(tmp_path / "whole")
    assert list(whole) == [0, 3, 6, 9, 12]
    config, last = load_weights(tmp_path / "whole/checkpoint.npz")
    assert_equal({12: last}, {12: whole[12]})
    assert "keep_every" not in config, "the probes read the settings as flags"
    train("--steps 7 --keep-every 3", tmp_path / "parts")
    train("--steps 12 --keep-every 3 --resume", tmp_path / "parts")
    assert_equal(kept(tmp_path / "parts"), whole)


def test_an_interrupt_before_a_file_loses_none(tmp_path, monkeypatch):
    """The step is whole, and in the checkpoint, when the second Ctrl-C comes: going on, its file is
    written."""
    train("--steps 12 --keep-every 3", tmp_path / "whole")
    with monkeypatch.context() as m:
        inner = grok_addition.cli.save_weights

        def interrupted(folder, run, config):
            if run.t == 6:
                raise KeyboardInterrupt
            inner(folder, run, config)

        m.setattr(grok_addition.cli, "save_weights", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train("--steps 12 --keep-every 3", tmp_path / "parts")
    assert list(kept(tmp_path / "parts")) == [0, 3]
    assert load_arrays(tmp_path / "parts/checkpoint.npz")[0]["step"] == 6
    train("--steps 12 --keep-every 3 --resume", tmp_path / "parts")
    assert_equal(kept(tmp_path / "parts"), kept(tmp_path / "whole"))


def test_a_full_disk_loses_one_file(tmp_path, monkeypatch, capsys):
    usual = writer.atomic_write

    def full(path, write):
        if path.name == "step_00000003.npz":
            raise OSError(28, "No space left on device")
        usual(path, write)

    monkeypatch.setattr(checkpoint, "atomic_write", full)
    train("--steps 6 --keep-every 3", tmp_path / "a")
    assert "the weights of step 3 are not kept" in capsys.readouterr().err
    assert list(kept(tmp_path / "a")) == [0, 6]


@pytest.mark.parametrize("flags", ["--steps 1000 --keep-every 1", "--steps 30 --keep-every 3"])
def test_too_many_are_refused_before_anything_is_written(flags, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "MOST_BYTES", 10_000)
    with pytest.raises(InputError, match="files of"):
        train(flags, tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_new_run_moves_the_weights_of_the_old_one(tmp_path):
    train("--steps 6 --keep-every 3", tmp_path / "a")
    train("--steps 2", tmp_path / "a")
    assert not (tmp_path / "a/weights").exists()
    assert len(list((tmp_path / "a/earlier-1/weights").iterdir())) == 3


def test_weights_of_an_ensemble_with_batchnorm(tmp_path):
    """Buffers are kept too: without them the network has no answers."""
    flags = "--regularizer batchnorm --batch-size 16 --steps 4 --keep-every 4"
    train(flags, tmp_path / "a", corrupted_labels)
    arrays = load_arrays(tmp_path / "a/weights/step_00000004.npz")[1]
    last = load_arrays(tmp_path / "a/checkpoint.npz")[1]
    assert {name.partition("/")[0] for name in arrays} == {"weight", "buffer"}
    for name, x in arrays.items():
        np.testing.assert_array_equal(x, last[name])


def test_on_step_is_called_at_the_beginning_and_after_every_step():
    from tinygrok.models.mlp import TwoLayerNet
    from tinygrok.tasks.modular import addition

    run = Training.on_task(TwoLayerNet(5, 6), addition(5))
    steps = []
    run.fit(3, on_step=lambda run: steps.append(run.t))
    run.fit(5, on_step=lambda run: steps.append(run.t))
    assert steps == [0, 1, 2, 3, 3, 4, 5]


@pytest.mark.slow
def test_a_film_of_the_transition(tmp_path):
    """At most FRAMES and the first, the last one included; the curves grow to the end."""
    Image = pytest.importorskip("PIL.Image")
    pytest.importorskip("matplotlib")
    flags = "--p 11 --width 8 --threads 1 --log-every 5 --steps 90 --animate --out"
    grok_addition.main([*flags.split(), str(tmp_path / "a")])
    steps = list(kept(tmp_path / "a"))
    assert steps == list(range(0, 91, 2))
    path = tmp_path / "a/grok_addition.gif"
    with Image.open(path) as film:
        assert (film.format, film.n_frames) == ("GIF", 23)
    assert path.stat().st_size < 2_000_000
    assert max(_film.load_frames(tmp_path / "a/weights")) == 90
    assert path.name in (tmp_path / "a/.tinygrok").read_text()


def test_a_film_without_weights_says_so(tmp_path, capsys):
    _film.write(None, tmp_path, tmp_path / "a.gif")
    assert "there are no weights" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
