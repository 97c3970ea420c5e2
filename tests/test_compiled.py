"""Kernels compiled for the CPU: numbers and bits beside those of NumPy, the cache, and what goes on
with NumPy. The same bodies as CUDA kernels: test_kernels.py, test_row_kernels.py."""

import json
import os
import re
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from helpers import small_run
from test_kernels import CASES, MAKERS, arguments
from test_row_kernels import HARD, LEAST, agree, cases, named
from test_row_kernels import KERNELS as ROWS

from tinygrok import cli
from tinygrok.engine import compiled, kernels, row_kernels
from tinygrok.engine.device import Device, DeviceError, get_device
from tinygrok.engine.errors import InputError
from tinygrok.engine.kernels import KERNELS, Fused
from tinygrok.engine.optim import AdamW
from tinygrok.engine.params import Arena
from tinygrok.training.checkpoint import load_training, save_training

pytestmark = pytest.mark.skipif(compiled.COMPILER is None, reason="no C++ compiler")
LIBRARY = Path(compiled.__file__).parent.parent
DTYPES = ("float32", "float64")
each_dtype = pytest.mark.parametrize("dtype", DTYPES)
LOOPS = compiled.load()[0] if compiled.COMPILER else {}
ELEMENTS = [name for name, loop in LOOPS.items() if loop.form == "ELEMENTS"]
SETTINGS = [(name, makers) for name, makers in CASES if name in LOOPS]


def native(dtype="float64", threads=1):
    dev = get_device("cpu", dtype, threads, kernels="compiled")
    assert dev.kernels == "compiled"
    return dev


def both(name, given, outputs):
    """The outputs of NumPy's body and of the compiled one, which must take the arguments."""
    results = []
    for run in (KERNELS[name].numpy, LOOPS[name]):
        args = [a.copy() if isinstance(a, np.ndarray) else a for a in given]
        with np.errstate(all="ignore"):
            assert run(*args) is not False
        results.append(args[-outputs:])
    return zip(*results, strict=True)


def test_what_is_compiled():
    """All but elementwise bodies with an index or an integer."""
    stay = {"power", "power_df", "power_d2f", "dropout_mask", "subtract_onehot"}
    assert set(KERNELS) - set(LOOPS) == stay


def test_an_integer_is_found_by_its_type_not_by_a_name(monkeypatch):
    monkeypatch.setattr(kernels, "KERNELS", {})
    made = {
        "T point": True,
        "T hint, T x": True,
        "int32 k, T x": False,
        "raw T x": False,
        "raw int32 order, T x": False,
    }
    for inputs, taken in made.items():
        probe = Fused("probe", inputs, "T y", "y = T(0);", print)
        assert compiled.Loop(probe).taken == taken, inputs


# -- numbers ---------------------------------------------------------------------------------------


@each_dtype
@pytest.mark.parametrize(("name", "makers"), SETTINGS, ids=[name for name, _ in SETTINGS])
def test_within_a_few_ulp_of_numpy(name, makers, dtype):
    given = arguments(name, makers, dtype)
    for theirs, ours in both(name, given, len(given) - LOOPS[name].inputs):
        size = max(1.0, np.abs(theirs).max())
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=4 * np.finfo(dtype).eps * size)


@each_dtype
@pytest.mark.parametrize("name", ["gelu", "gelu_df", "erf", "tanh_df", "erf_d2f"])
def test_of_any_size(name, dtype):
    """Fewer elements than a body computes at once, as many, more, and none."""
    rng = np.random.default_rng(0)
    for n in (0, 1, 15, 255, 256, 257, 3000):
        arrays = rng.normal(0, 3, (len(LOOPS[name].listed), n)).astype(dtype)
        for theirs, ours in both(name, arrays, 1):
            ulp = np.finfo(dtype).eps
            np.testing.assert_allclose(ours, theirs, rtol=4 * ulp, atol=9 * ulp)


SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, -1e-40, 1e30, -1e30, 1e-3, -7, 7, 90, -90]


@each_dtype
@pytest.mark.parametrize("name", ELEMENTS)
def test_nan_infinity_and_signed_zeros_as_in_numpy(name, dtype):
    """Of every input beside ordinary values of the others."""
    loop = LOOPS[name]
    for j in range(len(loop.listed)):
        given = [np.full(len(SPECIAL), 0.5, dtype) for _ in loop.listed]
        given[j] = np.array(SPECIAL, dtype)
        for theirs, ours in both(name, given, len(given) - loop.inputs):
            np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs))
            np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=1e-38)
            exact = (theirs == 0) & (ours == 0) & (name not in ("relu", "relu_df"))
            np.testing.assert_array_equal(np.signbit(ours[exact]), np.signbit(theirs[exact]))


@each_dtype
@pytest.mark.parametrize("name", ROWS)
def test_rows_of_any_length(name, dtype):
    for N in (1, 2, 15, 16, 17, 33, 1000):
        inputs, outputs = cases((2, 3), N, dtype)[name]
        made = [np.full(shape, np.nan, dtype) for shape in outputs]
        found = both(named(name).name, [*inputs, *made], len(outputs))
        cancels = name.startswith("layernorm")
        agree(zip(*found, strict=True), dtype, (50 if cancels else 8) + N**0.5, LEAST[name])


@each_dtype
@pytest.mark.parametrize("hard", HARD)
@pytest.mark.parametrize("name", ["softmax", "cross_entropy", "mse", "layernorm"])
def test_rows_with_nan_and_infinity_as_in_numpy(name, hard, dtype):
    x = np.tile(
        np.array(HARD[hard], dtype), 7
    )  # longer than the lanes of a row, and not a multiple
    y = np.empty_like(x)
    column = np.empty((2, 1), dtype)
    gain = np.ones((1, x.shape[-1]), dtype)
    given = {
        "softmax": [x, None, y],
        "cross_entropy": [x, np.array([[1], [1]]), column, y],
        "mse": [x, np.array([[1], [1]]), column, y],
        "layernorm": [x, gain, None, 1e-5, column, y, y.copy()],
    }[name]
    for theirs, ours in both(name, given, len(given) - LOOPS[name].inputs):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


# -- bits ------------------------------------------------------------------------------------------


@each_dtype
@pytest.mark.parametrize("name", ELEMENTS)
def test_the_bits_of_an_element_do_not_depend_on_where_it_stands(name, dtype):
    loop = LOOPS[name]
    rng = np.random.default_rng(1)
    whole = np.abs(rng.normal(0, 2, (len(loop.listed), 4, 700))).astype(dtype)
    parts, gaps = whole.copy(), whole.copy()
    assert loop(*whole)
    for start, stop in ((0, 3), (3, 260), (260, 517), (517, 700)):
        for e in range(4):
            assert loop(*(x[e, start:stop] for x in parts))
    np.testing.assert_array_equal(parts, whole)
    for columns in (slice(0, 500), slice(500, 700)):  # views with gaps between the rows
        assert loop(*(x[:, columns] for x in gaps))
    np.testing.assert_array_equal(gaps, whole)


@each_dtype
@pytest.mark.parametrize("name", ["gelu_df", "relu_df", "softmax", "layernorm_backward"])
def test_in_place(name, dtype):
    if name in ROWS:
        inputs, _ = cases((2, 3), 40, dtype)[name]
    else:
        inputs = np.random.default_rng(2).normal(size=(2, 3, 300)).astype(dtype)
    expected, given = np.empty_like(inputs[0]), inputs[0].copy()
    assert LOOPS[name](*inputs, expected)
    assert LOOPS[name](given, *inputs[1:], given)
    np.testing.assert_array_equal(given, expected)


def test_a_column_is_a_number_for_every_row():
    """One learning rate a member, and every member's own as a Python float."""
    given = arguments("adamw", MAKERS["adamw"], "float64")
    for theirs, ours in both("adamw", given, 3):
        np.testing.assert_allclose(ours, theirs, rtol=1e-14)
    together = arguments("adamw", MAKERS["adamw"], "float64")
    assert LOOPS["adamw"](*together)
    for e in range(2):
        own = [a[e] if isinstance(a, np.ndarray) else a for a in given]
        own[1] = float(given[1][e, 0])
        assert LOOPS["adamw"](*own)
        for ours, theirs in zip(own[-3:], together[-3:], strict=True):
            np.testing.assert_array_equal(ours, theirs[e])


# -- what goes on with NumPy -----------------------------------------------------------------------


def test_arguments_that_are_not_taken():
    x, y = np.ones((3, 8)), np.zeros((3, 8))
    softmax, gelu = LOOPS["softmax"], LOOPS["gelu"]
    assert not gelu(x.astype(complex), y.astype(complex))
    assert not gelu(x.astype(">f8"), y.astype(">f8"))
    assert not gelu(x, y[:, :4])
    assert not gelu(x[:2], y)
    assert not gelu(x, y[:1])  # which would be written three times
    assert not softmax(x[:, ::2], None, y[:, ::2])
    assert not softmax(x, x[:, :5], y)
    assert not LOOPS["layernorm"](x, x[:1, :5], None, 1e-5, y[:, :1], y.copy(), y)
    assert not y.any()
    dev = native()
    row_kernels.softmax(dev, x[:, ::2], None, y[:, ::2])
    assert (y[:, ::2] == 0.25).all()
    with pytest.raises(ValueError, match="broadcast"):
        KERNELS["gelu"](dev, x[:2], y)
    with pytest.raises(ValueError, match="broadcast"):
        row_kernels.softmax(dev, x, x[:, :5], y)


def start(folder, code="", **environment):
    """What a new process prints of the kernels that it takes."""
    code = f"{code}\nfrom tinygrok.engine.device import get_device\n"
    code += "dev = get_device('cpu', threads=1, kernels='compiled')\nprint(dev.kernels, dev.reason)"
    variables = {**os.environ, "TINYGROK_CACHE": str(folder), **environment}
    done = subprocess.run(
        [sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout


SMALL = """
from tinygrok.engine import kernels, row_kernels
for name in [*kernels.KERNELS]:
    if name != "relu":
        del kernels.KERNELS[name]
"""  # one kernel, which takes less time


def test_the_cache(tmp_path):
    """Made once; a damaged file is made anew; other source is another file; no rest is left."""
    assert start(tmp_path, SMALL).startswith("compiled CPU, NumPy")
    (file,) = tmp_path.iterdir()
    whole, made = file.read_bytes(), file.stat().st_mtime_ns
    assert "kernels compiled by" in start(tmp_path, SMALL)
    assert file.stat().st_mtime_ns == made
    for damaged in (b"", whole[:40], whole[: len(whole) // 2], whole[:5000] + b"x" + whole[5001:]):
        file.write_bytes(damaged)
        assert start(tmp_path, SMALL).startswith("compiled")
        assert [*tmp_path.iterdir()] == [file]
        assert len(file.read_bytes()) == len(whole)
    start(tmp_path, SMALL.replace('"relu"', '"square"'))
    assert len([*tmp_path.iterdir()]) == 2


def test_where_the_cache_is(tmp_path):
    start("", SMALL, XDG_CACHE_HOME=str(tmp_path / "a"))
    assert len([*(tmp_path / "a/tinygrok").iterdir()]) == 1
    start("", SMALL, XDG_CACHE_HOME="", HOME=str(tmp_path / "b"))
    assert len([*(tmp_path / "b/.cache/tinygrok").iterdir()]) == 1


def test_processes_that_start_at_once_share_a_cache(tmp_path):
    code = SMALL + "import sys; sys.stdout.flush()"
    code += "\nfrom tinygrok.engine.device import get_device\nimport numpy as np\n"
    code += "dev = get_device('cpu', threads=1, kernels='compiled')\n"
    code += "x = np.array([-1, 2.0]); dev.compiled['relu'](x, x); print(dev.kernels, x.tolist())"
    variables = {**os.environ, "TINYGROK_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", code]
    ranks = [
        subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    assert {rank.communicate()[0] for rank in ranks} == {"compiled [0.0, 2.0]\n"}
    assert len([*tmp_path.iterdir()]) == 1


def test_one_line_where_there_are_none(tmp_path):
    """No compiler, one that fails, a cache that cannot be written, a file there that is none."""
    assert "kernels of NumPy: there is no C++ compiler" in start(tmp_path, PATH="", CXX="")
    failing = tmp_path / "failing"
    failing.write_text("#!/bin/sh\necho 'it is broken:' >&2\necho 'really' >&2\nexit 3\n")
    failing.chmod(0o755)
    printed = start(tmp_path, CXX=str(failing))
    assert printed.startswith("numpy CPU, NumPy ")
    assert printed.endswith("kernels of NumPy: it is broken: really\n")
    assert printed.count("\n") == 1
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert "kernels of NumPy: [Errno 17] File exists" in start(blocked)
    silent = tmp_path / "silent"
    silent.touch()
    silent.chmod(0o755)
    for code in (0, 1):  # makes nothing; says nothing
        silent.write_text(f"#!/bin/sh\nexit {code}\n")
        assert re.search(r"^numpy .*kernels of NumPy: .*\w.*\n$", start(tmp_path, CXX=str(silent)))


def test_a_cache_into_which_others_write_is_not_run(tmp_path):
    """Also one whose folder is named from where the process stands."""
    assert start(tmp_path, SMALL).startswith("compiled")
    tmp_path.chmod(0o770)
    assert "kernels of NumPy: others can write to" in start(tmp_path, SMALL)
    here = f"import os; os.chdir({str(tmp_path)!r})\n{SMALL}"
    assert start("own", here).startswith("compiled")


def test_an_output_that_cannot_be_written_is_refused_as_by_numpy():
    dev = get_device("cpu", threads=1, kernels="compiled")
    y = np.zeros(3, "float32")
    y.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        KERNELS["relu"](dev, np.ones(3, "float32"), y)
    assert not y.any()


@pytest.mark.skipif(os.name != "posix" or os.getuid() == 0, reason="root writes everywhere")
def test_a_cache_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    assert "kernels of NumPy: [Errno 13] Permission denied" in start(tmp_path, SMALL)


def test_a_body_that_is_no_cpp(monkeypatch, tmp_path):
    broken = "import dataclasses as d; from tinygrok.engine import kernels as k"
    broken += "; d.replace(k.KERNELS['relu'], cuda='y = nonsense;')"
    printed = start(tmp_path, broken)
    assert printed.startswith("numpy")
    assert printed.count("\n") == 1


# -- training --------------------------------------------------------------------------------------


def weights(run):
    return np.concatenate([x.ravel() for x in run.params.to_host().values()])


@each_dtype
def test_members_are_trained_as_alone_on_any_number_of_threads(dtype):
    options = {"dropout": 0.2, "own_split": True, "fractions": [0.4, 0.5]}
    together = [small_run(native(dtype, threads), seeds=[3, 4], **options) for threads in (1, 2)]
    for run in together:
        run.fit(6, 2)
    np.testing.assert_array_equal(*(weights(run) for run in together))
    for e, seed in enumerate((3, 4)):
        own = {"fractions": [options["fractions"][e]], "dropout": 0.2, "own_split": True}
        alone = small_run(native(dtype), seeds=[seed], **own)
        alone.fit(6, 2)
        for name, x in alone.params.to_host(0).items():
            np.testing.assert_array_equal(x, together[0].params.to_host(e)[name])


def test_the_optimizer_updates_members_with_gaps_between_them():
    """Blocks of arenas, more than one body computes at a time, beside NumPy's."""
    found = []
    for dev in (Device("cpu", np), native("float32")):
        params, grads = (Arena(dev, {"w": (300, 301), "b": (7,)}, 3) for _ in range(2))
        rng = np.random.default_rng(0)
        for arena in (params, grads):
            arena.flat[...] = rng.normal(size=arena.flat.shape)
        optimizer = AdamW(dev, params, grads, lr=[1e-3, 2e-3, 3e-3], weight_decay=0.5)
        for t in (1, 2, 3):
            optimizer.step(t)
        found.append(params.flat)
    assert not np.array_equal(*found)
    np.testing.assert_allclose(*found, rtol=0, atol=1e-6)


def test_resumed_bit_for_bit_and_refused_by_the_other_kernels(tmp_path):
    config = {"kernels": "compiled", "p": 11}
    whole, first, second = (small_run(native("float32"), dropout=0.2) for _ in range(3))
    whole.fit(8, 4)
    first.fit(4, 4)
    save_training(tmp_path / "a.npz", first, config)
    load_training(tmp_path / "a.npz", second, config, {"kernels": "numpy"})
    second.fit(8, 4)
    np.testing.assert_array_equal(weights(second), weights(whole))
    other = config | {"kernels": "numpy"}
    with pytest.raises(InputError, match="was made with kernels = compiled, this run has kernels"):
        load_training(tmp_path / "a.npz", second, other)
    save_training(tmp_path / "b.npz", first, {"p": 11})  # of a version without the setting
    load_training(tmp_path / "b.npz", second, other, {"kernels": "numpy"})
    with pytest.raises(InputError, match="kernels = numpy"):
        load_training(tmp_path / "b.npz", second, config, {"kernels": "numpy"})


def test_names():
    with pytest.raises(DeviceError, match="unknown kernels 'fast': choose numpy, compiled"):
        get_device("cpu", kernels="fast")
    assert get_device("cpu", threads=1).kernels == "numpy"


def arguments_of(**changed):
    flags = {"device": "cpu", "dtype": "float32", "threads": 1, "tf32": False}
    return Namespace(**flags, **{"kernels": "compiled", "changed": {"kernels"}} | changed)


def test_the_settings_of_a_run_say_which_kernels_it_had(monkeypatch, capsys):
    args = arguments_of(out=Path("nowhere"))
    experiment = cli.Experiment(args)
    assert "kernels compiled by" in capsys.readouterr().out
    assert (args.kernels, experiment.where(None)["kernels"]) == ("compiled", "compiled")
    monkeypatch.setattr(compiled, "load", lambda: ({}, "numpy", "kernels of NumPy: why"))
    args = arguments_of(out=Path("nowhere"))
    experiment = cli.Experiment(args)
    assert "kernels of NumPy: why" in capsys.readouterr().out
    assert (args.kernels, experiment.where([])["kernels"]) == ("numpy", "numpy")
    assert (experiment.where(None)["threads"], experiment.where([])["threads"]) == (1, 1)


def test_refused_on_a_gpu(monkeypatch):
    monkeypatch.setattr(cli, "get_device", lambda *words: Device("cuda", None))
    with pytest.raises(InputError, match="--kernels is for the CPU: add --device cpu"):
        cli.Experiment(arguments_of(out=Path("nowhere")))


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        "grok_addition.py --p 13 --width 20 --steps 40 --log-every 20",
        "phase_diagram.py --p 7 --width 8 --grid 2 --steps 20 --seeds 1 --workers 2",
        "lcg_scaling.py --moduli 16 32 --steps 2",
    ],
)
def test_an_example(words, tmp_path):
    """It says what is used, repeats itself, and refuses to go on with the other kernels."""
    script, *flags = words.split()
    where = LIBRARY.parent / "examples" / script
    command = [sys.executable, str(where), *flags, "--no-plot", "--device", "cpu", "--threads", "1"]

    def run(*more, code=0):
        done = subprocess.run([*command, *more], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        return done

    results = []
    for out in ("a", "b"):
        assert "kernels compiled by" in run("--kernels", "compiled", "--out", out).stdout
        results.append(json.loads((tmp_path / out / "run.json").read_text()))
    assert results[0]["config"]["kernels"] == "compiled"
    assert results[0]["results"].keys() == results[1]["results"].keys()
    refused = run("--resume", "--out", "a", code=2).stderr
    assert "was made with kernels = compiled, this run has kernels = numpy" in refused
    run("--resume", "--kernels", "compiled", "--out", "a")


@pytest.mark.slow
def test_the_audit(tmp_path):
    script = LIBRARY.parent / "examples/audit_gradients.py"
    words = [sys.executable, str(script), "--kernels", "compiled", "--out", str(tmp_path / "a")]
    done = subprocess.run([*words, "--op", "gelu"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "kernels compiled by" in done.stdout
    done = subprocess.run([*words, "--file", __file__], capture_output=True, text=True)
    assert done.returncode == 2
    assert "--kernels is for the library's own kernels" in done.stderr
