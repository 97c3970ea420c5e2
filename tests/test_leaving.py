"""Leaving a run at any moment, and going on: whole steps, saved states, and the command for it."""

import copy
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from _kept import kept
from helpers import small_run
from stress_damage import write_images
from test_parallel import MPIRUN, needs_mpi

from tinygrok import cli
from tinygrok.disk.writer import atomic_write
from tinygrok.engine import optim
from tinygrok.engine.errors import InputError
from tinygrok.engine.optim import AdamW
from tinygrok.training import ensembles
from tinygrok.training.checkpoint import load_arrays, load_training, save_arrays, save_training
from tinygrok.training.ensembles import train_pack
from tinygrok.training.folder import Folder
from tinygrok.training.progress import Interrupt

EXAMPLES = Path(__file__).parent.parent / "examples"
QUICK = "--p 23 --width 32 --no-plot --threads 1"
slow = pytest.mark.slow


def state(run):
    """Everything that a step changes."""
    arrays = {f"w/{name}": x for name, x in run.params.to_host().items()}
    for kind, arena in run.optimizer.state.items():
        arrays |= {f"{kind}/{name}": x for name, x in arena.to_host().items()}
    arrays |= {f"h/{name}": np.array(column) for name, column in run.history.items()}
    return arrays | {"t": np.array(run.t)}


def assert_same(a, b):
    assert set(a) == set(b)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def at_update(run, t, act):
    """Act inside the optimiser, once, when the second block of step t is to be updated."""
    inner = run.optimizer._update_flat
    calls = []

    def update(views, *scalars):
        calls.append(run.t + 1)
        if calls.count(t) == 2 and calls[-1] == t:
            act()
        inner(views, *scalars)

    run.optimizer._update_flat = update


def interrupt():
    signal.raise_signal(signal.SIGINT)


def fail():
    raise KeyboardInterrupt


def command(example, flags):
    return [sys.executable, str(EXAMPLES / f"{example}.py"), *flags.split()]


def begun(example, flags, cwd, file, more=(), **options):
    """A process of an example, with flags and more words, that has written a file."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    words = [*command(example, flags), *more]
    process = subprocess.Popen(words, cwd=cwd, text=True, **pipes, **options)
    while not (cwd / file).exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    return process


# -- whole steps -----------------------------------------------------------------------------------


def test_ctrl_c_waits_for_a_whole_step(host_dev, monkeypatch):
    """In the middle of an update: raised after it, everything saved, and fit goes on bit by bit."""
    monkeypatch.setattr(optim, "BLOCK", 64)
    straight, run = small_run(host_dev), small_run(host_dev)
    straight.fit(10, log_every=5)
    at_update(run, 5, interrupt)
    saves = []
    with pytest.raises(KeyboardInterrupt):
        run.fit(10, log_every=5, save=lambda r: saves.append((r.t, list(r.history["step"]))))
    assert saves == [(5, [0, 5])]
    run.fit(10, log_every=5)
    assert_same(state(straight), state(run))


def test_a_step_left_half_done_is_not_gone_on_from(host_dev, tmp_path, monkeypatch):
    """An error inside an update: nothing is saved, going on is refused, a loaded checkpoint mends
    it."""
    monkeypatch.setattr(optim, "BLOCK", 64)
    straight, run = small_run(host_dev), small_run(host_dev)
    straight.fit(3)
    straight.fit(10)
    run.fit(3)
    save_training(tmp_path / "good.npz", run, {})
    at_update(run, 5, fail)
    saves = []
    with pytest.raises(KeyboardInterrupt):
        run.fit(10, save=lambda r: saves.append(r.t))
    assert not saves
    with pytest.raises(InputError, match="step 5 was left half done"):
        run.fit(10)
    save_training(tmp_path / "torn.npz", run, {})
    torn = small_run(host_dev)
    load_training(tmp_path / "torn.npz", torn, {})
    with pytest.raises(InputError, match="step 5 was left half done"):
        torn.step()
    load_training(tmp_path / "good.npz", run, {})
    run.fit(10)
    assert_same(state(straight), state(run))


def test_a_measurement_that_was_left_is_made_up_for(host_dev):
    straight, run = small_run(host_dev), small_run(host_dev)
    straight.fit(10, log_every=5)
    measurements = run.measurements

    def fails_once():
        run.measurements = measurements
        raise KeyboardInterrupt

    run.fit(4, log_every=4)
    run.history = {name: column[:1] for name, column in run.history.items()}
    run.measurements = fails_once
    with pytest.raises(KeyboardInterrupt):
        run.fit(10, log_every=5)
    run.fit(10, log_every=5)
    assert_same(state(straight), state(run))


def test_ctrl_c_while_a_checkpoint_is_written_waits_for_it(tmp_path, monkeypatch):
    savez = np.savez

    def slow_savez(file, **members):
        for _ in range(3):
            interrupt()
        savez(file, **members)

    monkeypatch.setattr(np, "savez", slow_savez)
    with pytest.raises(KeyboardInterrupt):
        save_arrays(tmp_path / "c.npz", {}, {"x": np.ones(3)})
    assert load_arrays(tmp_path / "c.npz")[1]["x"].sum() == 3


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_a_file_is_flushed_before_it_is_renamed_and_its_folder_after(tmp_path, monkeypatch):
    """So that a crash of the machine leaves the old file or the new."""
    calls = []

    def watched(name):
        function = getattr(os, name)

        def call(first, *rest):
            path = os.readlink(f"/proc/self/fd/{first}") if name == "fsync" else first
            calls.append((name, Path(path).name))
            return function(first, *rest)

        monkeypatch.setattr(os, name, call)

    for name in ("fsync", "replace"):
        watched(name)
    atomic_write(tmp_path / "a", lambda file: file.write(b"text"))
    part = f".a.{os.getpid()}.part"
    assert calls == [("fsync", part), ("replace", part), ("fsync", tmp_path.name)]


def test_fit_saves_when_progress_breaks(host_dev):
    run, saves = small_run(host_dev), []

    def show(row):
        if row["step"] == 5:
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        run.fit(10, 5, show, lambda r: saves.append((r.t, r.history["step"][-1])))
    assert saves == [(5, 5)]


def test_training_goes_on_after_a_save_that_failed(host_dev, tmp_path):
    straight, run = small_run(host_dev), small_run(host_dev)
    straight.fit(10, log_every=5)

    def save(run):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        run.fit(10, 5, save=save, save_seconds=0)
    run.fit(10, 5)
    assert_same(state(straight), state(run))


def test_outside_the_main_thread(host_dev):
    run = small_run(host_dev)
    thread = threading.Thread(target=lambda: run.fit(3))
    thread.start()
    thread.join()
    assert run.t == 3


def test_second_interrupt_is_at_once_and_ignored_signals_stay_so():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with Interrupt() as asked:
            signal.raise_signal(signal.SIGTERM)
            assert not asked()
            signal.raise_signal(signal.SIGINT)
            assert asked()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, before)


# -- hyperparameters -------------------------------------------------------------------------------


CHANGES = {"lr": [0.003, 0.02], "weight_decay": 0.25, "betas": (0.8, 0.9), "clip": 0.05}


def test_hyperparameters_change_midway_and_are_kept(dev, tmp_path):
    """As a run that is built anew with them; the record tells when; a checkpoint restores them."""
    changed, built = small_run(dev, seeds=[0, 1]), small_run(dev, seeds=[0, 1])
    for run in (changed, built):
        run.fit(4)
    for name, value in CHANGES.items():
        setattr(changed.optimizer, name, value)
    changed.optimizer.betas = list(CHANGES["betas"])  # is on record as the tuple is
    more = {"schedule": built.optimizer.schedule, **CHANGES}
    fresh = AdamW(dev, built.params, built.grads, **more)
    for name, arena in fresh.state.items():
        arena.load(built.optimizer.state[name].to_host())
    built.optimizer = fresh
    for run in (changed, built):
        run.fit(8)
    assert_same(state(changed), state(built))
    steps, values = zip(*changed.hyperparameters, strict=True)
    assert steps == (1, 5)
    assert [v["lr"] for v in values] == [[0.01, 0.01], [0.003, 0.02]]
    assert values[1]["betas"] == [0.8, 0.9]
    save_training(tmp_path / "c.npz", changed, {})
    loaded = small_run(dev, seeds=[0, 1])
    load_training(tmp_path / "c.npz", loaded, {})
    assert loaded.hyperparameters == changed.hyperparameters
    for run in (changed, loaded):
        run.fit(12)
    assert_same(state(changed), state(loaded))
    assert loaded.hyperparameters == changed.hyperparameters


@pytest.mark.parametrize("value", [-1, float("nan"), "fast", [0.1, 0.2]])
def test_a_rate_that_is_none_is_refused_when_it_is_set(host_dev, value):
    run = small_run(host_dev)
    with pytest.raises(InputError, match="the learning rate must be"):
        run.optimizer.lr = value
    run.fit(2)


def test_a_copy_of_a_run_is_a_run_of_its_own(dev):
    straight, run = small_run(dev, dropout=0.1), small_run(dev, dropout=0.1)
    straight.fit(4)
    straight.fit(8)
    run.fit(4)
    twin = copy.deepcopy(run)
    run.params.flat[...] = 0
    twin.fit(8)
    assert_same(state(straight), state(twin))
    assert run.t == 4


# -- processes -------------------------------------------------------------------------------------


def example(name, flags, cwd):
    return subprocess.run(command(name, flags), cwd=cwd, capture_output=True, text=True)


def go_on(printed, cwd, **more):
    """Run the last line printed, as a shell would, from another folder and with another path."""
    line = printed.strip().splitlines()[-1]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(EXAMPLES.parent), **more}
    options = {"cwd": cwd, "env": environment, "capture_output": True, "text": True}
    return subprocess.run(line, shell=True, timeout=100, **options)


@slow
def test_a_reader_that_goes_away(tmp_path):
    """| head -3: the state is kept, and the command that goes on is printed and works elsewhere."""
    flags = f"{QUICK} --log-every 1 --steps 20000 --save-seconds 0.1 --out a"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    words = command("grok_addition", flags)
    with subprocess.Popen(words, cwd=tmp_path, text=True, **pipes) as run:
        for _ in range(3):
            run.stdout.readline()
        run.stdout.close()
        said = run.stderr.read()
    assert run.returncode == 1
    assert "Traceback" not in said
    assert "Exception ignored" not in said
    done = go_on(said.replace("--steps 20000", "--steps 1"), "/")
    assert "resumed at step" in done.stdout, done


@slow
def test_a_full_disk_costs_a_line_and_no_training(tmp_path):
    shell = 'ulimit -f 40; exec "$@"'
    words = ["sh", "-c", shell, "sh", *command("grok_addition", f"{QUICK} --steps 30 --out b")]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert "step 30 is not saved: " in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.returncode == 0
    assert sorted(p.name for p in (tmp_path / "b").glob("[!.]*")) == ["log.csv", "run.json"]


@slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_polite_kill_saves_also_in_the_background(name, tmp_path):
    """A child of a shell's & ignores Ctrl-C."""
    flags = f"{QUICK} --steps 100000 --save-seconds 0.05 --out c"
    ignore = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)}
    run = begun("grok_addition", flags, tmp_path, "c/checkpoint.npz", **ignore)
    run.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert run.poll() is None, "Ctrl-C is not ignored any more"
    run.send_signal(getattr(signal, name))
    printed, said = run.communicate(timeout=60)
    assert run.returncode == 130, said
    done = go_on(printed.replace("--steps 100000", "--steps 1"), "/")
    assert "resumed at step" in done.stdout, done


@slow
@pytest.mark.parametrize("data", ["--data own images", "--data=own images", "--dat=own images"])
def test_paths_that_are_given_are_right_from_another_folder(data, tmp_path):
    """The settings stay the same, so that --resume takes them for those of the checkpoint."""
    write_images(tmp_path / "own images")
    flags = "--model mlp --quick --no-plot --threads 1 --batch 4 --inits off --lr 1"
    flags += " --width 8 --depth 2 --save-seconds 0.05 --steps 100000"
    words = [*flags.split(), *re.split(" (?=own)", data)]
    with begun("autoinit", "", tmp_path, "runs/autoinit/off-1-0.npz", words) as run:
        run.send_signal(signal.SIGTERM)
        printed, said = run.communicate(timeout=60)
    assert run.returncode == 130, said
    done = go_on(printed.replace("--steps 100000", "--steps 1"), "/")
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(os.listdir(tmp_path)) == ["own images", "runs"]


AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
MANY = {"PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe"}  # ranks on one core
RANKS = "--quick --width 8 --depth 1 --measure-every 5 --steps 100000 --threads 1 --no-plot --out a"


@slow
@needs_mpi
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_ctrl_c_under_mpirun(name, tmp_path):
    """Nothing that ranks print afterwards is shown by Open MPI, which ends with 1 whatever they end
    with: the command stands before the first step. What was trained is saved."""
    words = [MPIRUN, "-n", "2", *command("in_context", RANKS)]
    its = {"HOME": str(tmp_path), **AS_ROOT, **MANY}
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(EXAMPLES.parent), **its}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, cwd=tmp_path, env=environment, **pipes) as run:
        lines = []
        while not lines or not lines[-1].startswith("step "):
            lines.append(run.stdout.readline())
            assert lines[-1], run.stderr.read()
        run.send_signal(getattr(signal, name))
        said = run.stderr.read()
    assert run.returncode
    assert "MPI_ABORT" not in said
    assert "Traceback" not in said
    assert load_arrays(tmp_path / "a/checkpoint.npz")[0]["step"] > 0
    told = [line for line in lines if " -n 2 " in line]
    assert len(told) == 1
    done = go_on(told[0].replace("--steps 100000", "--steps 1"), "/", **its)
    assert "resumed at step" in done.stdout, done
    assert done.returncode == 0


AFTERWARDS = """
import os, signal, sys
sys.path.insert(0, {examples!r})
import grok_addition
from tinygrok import cli

def measured(*_):
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)

grok_addition.measured = measured
cli.main(lambda: grok_addition.main({words!r}))
"""


@slow
def test_a_kill_during_the_evaluation_says_how_to_go_on(tmp_path):
    words = f"{QUICK} --steps 5 --out d".split()
    script = AFTERWARDS.format(examples=str(EXAMPLES), words=words)
    options = {"cwd": tmp_path, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", script], **options, env=os.environ)
    assert done.returncode == 130, done
    assert "Traceback" not in done.stderr
    again = go_on(done.stderr, "/")
    assert "resumed at step 5" in again.stdout, again
    assert (tmp_path / "d/run.json").exists()


def without_setting(path, name):
    """The checkpoint of a version that had no such flag."""
    meta, arrays = load_arrays(path)
    del meta["config"][name]
    save_arrays(path, meta, arrays)


@slow
def test_a_checkpoint_older_than_a_flag(tmp_path):
    """It resumes where the flag has its default, and nowhere else."""
    example("grok_addition", f"{QUICK} --steps 5 --out a", tmp_path)
    without_setting(tmp_path / "a/checkpoint.npz", "dropout")
    flags = f"{QUICK} --steps 6 --out a --resume"
    other = example("grok_addition", f"{flags} --dropout 0.1", tmp_path)
    assert other.returncode == 2
    assert "dropout = 0.0, this run has dropout = 0.1" in other.stderr
    done = example("grok_addition", flags, tmp_path)
    assert done.returncode == 0, done.stderr
    example("lcg_scaling", "--moduli 48 54 --steps 2 --no-plot --out b", tmp_path)
    settings = json.loads((tmp_path / "b/config.json").read_text())
    del settings["depth"]
    (tmp_path / "b/config.json").write_text(json.dumps(settings))
    done = example("lcg_scaling", "--moduli 48 54 --steps 2 --no-plot --out b --resume", tmp_path)
    assert done.returncode == 0, done.stderr


POINT = {"p": 11, "width": 8, "steps": 20, "log_every": 5, "dropout": 0.1}


def test_a_pack_goes_on_where_it_was_interrupted(tmp_path, monkeypatch):
    """From its own checkpoint, to the same outcome, which leaves no checkpoint."""
    points = [POINT | {"seed": seed} for seed in (0, 1)]
    whole = train_pack(points, "cpu", 1)
    build = ensembles.build
    steps = []

    def watched(*args):
        run = build(*args)
        inner = run.gradient

        def gradient(t):
            steps.append(t)
            if steps == list(range(1, 12)):
                interrupt()
            return inner(t)

        run.gradient = gradient
        return run

    monkeypatch.setattr(ensembles, "build", watched)
    with pytest.raises(KeyboardInterrupt):
        train_pack(points, "cpu", 1, tmp_path)
    assert len(os.listdir(tmp_path)) == 1
    assert train_pack(points, "cpu", 1, tmp_path) == whole
    assert steps == list(range(1, 21))
    assert not os.listdir(tmp_path)


PARTS = {
    "critical_init": "--survey --width 40 --depth 6 --networks 3 --grid 2 --batch 16",
    "analytic_weights": "--p 23",
    "phase_networks": "--mlp --grid 4 --networks 2 --mu 1",
}


@slow
@pytest.mark.parametrize("name", PARTS)
def test_what_is_measured_is_kept(name, tmp_path):
    """Interrupted in the middle: the command that is printed measures the rest, to the same
    digits; another setting is refused."""
    flags = f"{PARTS[name]} --threads 1 --no-plot --out a"
    assert example(name, flags.replace("--out a", "--out whole"), tmp_path).returncode == 0
    run = begun(name, flags, tmp_path, "a/packs")
    run.send_signal(signal.SIGTERM)
    said = run.communicate(timeout=60)[1]
    assert run.returncode == 130, said
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "a/packs").glob("*.json")}
    assert not (tmp_path / "a/run.json").exists()
    assert example(name, f"{flags} --resume --seed 9", tmp_path).returncode == 2
    done = go_on(said, "/")
    assert done.returncode == 0, done
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    one, other = (json.loads((tmp_path / x / "run.json").read_text()) for x in ("a", "whole"))
    assert one["results"] == other["results"]


def test_a_kept_part_that_is_damaged_counts_as_none(tmp_path):
    """Another digit, another part, half of it: computed anew; else what JSON gives back."""
    path = tmp_path / "part-0.json"
    other = tmp_path / "part-1.json"
    calls = []

    def function(x):
        calls.append(x)
        return {"row": np.arange(3) / x, "nan": float("nan")}

    for _ in range(2):
        first = kept(path, function, 7)
    kept(other, function, 8)
    assert calls == [7, 8]
    good = path.read_bytes()
    for damaged in (good.replace(b"0.14", b"0.15"), other.read_bytes(), good[:-9], b"[]", b"\xff"):
        path.write_bytes(damaged)
        assert repr(kept(path, function, 7)) == repr(first)
        assert path.read_bytes() == good
    assert calls == [7, 8, 7, 7, 7, 7, 7]


# -- the folder ------------------------------------------------------------------------------------


def test_a_damaged_list_is_no_obstacle_and_moves_nothing_else(tmp_path):
    (tmp_path / "precious").write_text("mine")
    out = tmp_path / "out"
    out.mkdir()
    for name in ("run.json", "own"):
        (out / name).write_text("mine")
    (out / ".tinygrok").write_bytes(b"\xff\0\n../precious\n.tinygrok\n" + b"long" * 999)
    folder = Folder(out, {"run.json"}, False)
    assert sorted(os.listdir(out)) == [".tinygrok", "earlier-1", "own"]
    assert os.listdir(out / "earlier-1") == ["run.json"]
    (out / "run.json").write_text("new")
    assert folder.note() == ["run.json"]


def test_a_list_is_only_added_to(tmp_path, monkeypatch):
    """So that a kill, or a full disk, cannot lose the names that stand in it."""
    (tmp_path / ".tinygrok").write_text("a.png")
    for name in ("a.png", "run.json"):
        (tmp_path / name).write_text("")
    folder = Folder(tmp_path, {"run.json"}, True)
    monkeypatch.setattr(Path, "write_text", None)
    assert folder.note() == folder.note() == ["a.png", "run.json"]
    assert (tmp_path / ".tinygrok").read_text().split() == ["a.png", "run.json"]


@slow
def test_a_second_process_in_a_folder_is_refused(tmp_path):
    """In one line, with nothing moved; the lock of a killed process is no obstacle."""
    flags = f"{QUICK} --steps 100000 --save-seconds 0.05 --out a"
    first = begun("grok_addition", flags, tmp_path, "a/checkpoint.npz")
    for more in ("", " --resume"):
        second = example("grok_addition", flags + more, tmp_path)
        assert second.returncode == 2
        assert second.stderr.count("\n") == 1
        assert "another process is at work there" in second.stderr
    sweep = example("lcg_scaling", "--quick --out a", tmp_path)
    assert (sweep.returncode, sweep.stderr) == (
        2,
        second.stderr.replace("grok_addition", "lcg_scaling"),
    )
    assert not (tmp_path / "a/earlier-1").exists()
    first.kill()
    first.communicate()
    example("grok_addition", f"{QUICK} --steps 5 --out a", tmp_path)
    assert sorted(os.listdir(tmp_path / "a/earlier-1")) == ["checkpoint.npz"]


@slow
def test_only_what_runs_left_is_moved(tmp_path):
    """--out . among files of the user's own; the temporary file of a killed writer is gone."""
    own = ["own.png", "own.npz", "config.json", ".checkpoint.npz.99.png"]
    for name in own:
        (tmp_path / name).write_text("precious")
    (tmp_path / ".checkpoint.npz.99.part").write_text("half")
    for steps in (5, 6):
        done = example("grok_addition", f"--p 11 --width 8 --steps {steps} --out .", tmp_path)
        assert done.returncode == 0, done.stderr
        (tmp_path / f"own-{steps}.png").write_text("precious")
        own.append(f"own-{steps}.png")
    names = ["checkpoint.npz", "grok_addition.png", "log.csv", "run.json"]
    assert sorted(os.listdir(tmp_path / "earlier-1")) == names
    assert sorted(os.listdir(tmp_path)) == sorted([*own, *names, ".tinygrok", "earlier-1"])
    assert all((tmp_path / name).read_text() == "precious" for name in own)


def test_a_folder_that_is_removed_is_made_again(tmp_path):
    """In one process, as between two cells of a notebook; it is locked again."""
    out = tmp_path / "a"
    for _ in range(2):
        folder = Folder(out, {"run.json"}, False)
        assert folder.kept is None
        (out / "run.json").write_text("{}")
        assert folder.note() == ["run.json"]
        shutil.rmtree(out)
    Folder(out, {"run.json"}, False)
    code = "import sys; from pathlib import Path; from tinygrok.training.folder import claim; "
    code += "claim(Path(sys.argv[1]))"
    second = subprocess.run([sys.executable, "-c", code, str(out)], capture_output=True, text=True)
    assert "another process is at work there" in second.stderr


def test_a_list_names_files_of_its_folder_alone(tmp_path):
    """A list is a file like others: it may come from elsewhere, and be damaged."""
    out = tmp_path / "a"
    out.mkdir()
    for place in (tmp_path / "own.txt", out / "log.csv"):
        place.write_text("precious")
    names = ["../own.txt", str(tmp_path / "own.txt"), "", ".", "nothing", "log.csv"]
    (out / ".tinygrok").write_bytes(b"\xff\n" + "\n".join(names).encode())
    folder = Folder(out, {"run.json"}, False)
    assert os.listdir(folder.kept) == ["log.csv"]
    assert sorted(os.listdir(tmp_path)) == ["a", "own.txt"]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_notebook_that_is_interrupted_in_a_sweep_keeps_its_kernel(workers, tmp_path, monkeypatch):
    import lcg_scaling

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "sweep", interrupted)
    monkeypatch.setattr(cli.os, "_exit", lambda code: pytest.fail("the process was ended"))
    flags = f"--quick --workers {workers} --threads 1 --out {tmp_path / 'a'}"
    with pytest.raises(KeyboardInterrupt):
        lcg_scaling.main(flags.split())


@pytest.mark.parametrize("clusters", [True, False])
def test_ctrl_c_leaves_at_once_where_a_cluster_is_asked(clusters, monkeypatch):
    """Dask would log what breaks off, for seconds."""
    monkeypatch.delitem(sys.modules, "distributed", raising=False)
    if clusters:
        monkeypatch.setitem(sys.modules, "distributed", ModuleType("distributed"))
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    left = []
    monkeypatch.setattr(cli, "leave", left.append)
    with pytest.raises(SystemExit, match="130"):
        cli.main(fail)
    assert left == [130] * clusters


@slow
def test_ctrl_c_ends_workers_without_a_warning(tmp_path):
    """Of semaphores that were left behind, or of workers that a terminal's Ctrl-C reaches too."""
    flags = "--p 23 --width 40 --steps 300 --grid 10 --pack 2 --workers 2 --no-plot --out x"
    process = begun("phase_diagram", flags, tmp_path, "x/config.json", start_new_session=True)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while process.poll() is None and not list(tmp_path.glob("x/packs/*.json")):
        time.sleep(0.02)
    started = children.read_text().split() if children.exists() else []
    os.killpg(process.pid, signal.SIGINT)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "finished packs are in x" in said
    assert errors.strip().startswith("interrupted\nTo go on:\n")
    assert errors.strip().count("\n") == 2
    until = time.monotonic() + 20
    while [pid for pid in started if Path(f"/proc/{pid}/cmdline").exists()]:
        assert time.monotonic() < until
        time.sleep(0.02)


def test_main_prints_where_letters_cannot_be_set(monkeypatch):
    """As in a notebook, whose output is no file."""
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as left:
        cli.main(lambda: print("done"))
    assert left.value.code is None
    assert sys.stdout.getvalue() == "done\n"


@slow
def test_a_folder_without_a_name_is_refused(tmp_path):
    done = subprocess.run(
        [*command("grok_addition", "--quick"), "--out", ""],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert not list(tmp_path.iterdir())


# -- consoles --------------------------------------------------------------------------------------


@slow
@pytest.mark.parametrize("name", ["\u65e5\u672c", "caf\udce9"], ids=["letters", "no UTF-8"])
def test_names_that_the_console_does_not_have(name, tmp_path):
    words = [*command("grok_addition", f"{QUICK} --steps 2"), "--out", name]
    environment = os.environ | {"PYTHONIOENCODING": "cp1252"}
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / name / "run.json").exists()


@slow
@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("[!_]*.py")))
def test_without_docstrings(name, tmp_path):
    """python -OO: --help works, and says nothing about what is not there."""
    _, *words = command(name, "--help")
    done = subprocess.run([sys.executable, "-OO", *words], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@slow
@pytest.mark.parametrize("closed", ["1", "2"])
def test_without_an_output(closed, tmp_path):
    shell = f'exec "$@" {closed}>&-'
    words = ["sh", "-c", shell, "sh", *command("grok_addition", f"{QUICK} --steps 2 --out a")]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "a/run.json").exists()
