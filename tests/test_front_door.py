"""The front door: every public name resolves, is documented and shows an example that runs; three
kinds of run in six lines."""

import ast
import doctest
import importlib
import io
import pkgutil
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import tinygrok as tg
from tinygrok.engine.errors import InputError
from tinygrok.tasks.images import Images

ROOT = Path(__file__).parent.parent
TABLES = {"ACTIVATIONS", "LOSSES", "OPTIMIZERS", "TASKS"}


def examples(value, name):
    """The docstrings of a function, or of a class and its methods, that hold an example."""
    module = sys.modules[getattr(value, "__module__", value.__name__)]
    globs = {**vars(module), "tg": tg, "np": np}
    if value is module:  # the package audit, which can be called
        found = [doctest.DocTestParser().get_doctest(value.__doc__, globs, name, None, 0)]
    else:
        found = doctest.DocTestFinder().find(value, name, module, globs)
    return [test for test in found if test.examples]


def run(tests):
    for test in tests:
        text = io.StringIO()
        results = doctest.DocTestRunner().run(test, out=text.write)
        assert not results.failed, text.getvalue()


@pytest.mark.parametrize("name", sorted(set(tg.__all__) - TABLES))
def test_public_name(name):
    value = getattr(tg, name)
    assert name in dir(tg)
    assert value.__doc__
    tests = examples(value, name)
    assert tests, f"{name}: its docstring shows no example"
    if name.startswith("torch_"):
        pytest.importorskip("torch", reason="torch is not installed (the oracle extra)")
    run(tests)


@pytest.mark.parametrize("name", sorted(TABLES))
def test_table(name):
    table = getattr(tg, name)
    assert table
    assert all(isinstance(key, str) for key in table)


def test_other_examples():
    """Whatever else shows an example in its docstring."""
    for found in pkgutil.walk_packages(tg.__path__, "tinygrok."):
        run_module(found.name)


SHOWING = [p.stem for p in (ROOT / "examples").glob("_*.py") if "\n    >>> " in p.read_text()]


@pytest.mark.parametrize("name", sorted(SHOWING))
def test_examples_of_helpers(name):
    """And what helpers of the examples show in theirs."""
    assert run_module(name)


def run_module(name):
    """Run the examples of a module's functions and classes that are not public; how many."""
    public = {id(getattr(tg, other)) for other in tg.__all__}
    count = 0
    for key, value in vars(importlib.import_module(name)).items():
        documented = isinstance(value, types.FunctionType | type)
        if documented and value.__module__ == name and id(value) not in public:
            tests = examples(value, f"{name}.{key}")
            run(tests)
            count += len(tests)
    return count


def test_type_checkers_see_the_same_names():
    """The stub imports every public name from where it comes; two have another name there."""
    tree = ast.parse((ROOT / "tinygrok" / "__init__.pyi").read_text())
    seen = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            seen |= {alias.asname: (node.module, alias.name) for alias in node.names}
        elif isinstance(node, ast.Assign):
            seen[node.targets[0].id] = seen.pop(node.value.id)
    assert sorted(seen) == tg.__all__
    for name, (module, original) in seen.items():
        value = getattr(importlib.import_module(f"tinygrok.{module}"), original)
        assert getattr(tg, name) is value or name == "audit"


def test_other_names_are_refused():
    with pytest.raises(AttributeError, match="no attribute 'grok'"):
        tg.grok  # noqa: B018


# -- six lines -------------------------------------------------------------------------------------


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_first_script(tmp_path):
    """The script in the package's docstring, in a process of its own."""
    block = re.search(r"\n((?:    .*\n|\n)+)", tg.__doc__).group(1)
    script = "\n".join(line[4:] for line in block.splitlines())
    assert script.strip().startswith("import tinygrok as tg")
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "1.0"
    assert is_png(tmp_path / "grok.png")


@pytest.mark.slow
def test_a_gpt_on_pseudo_random_numbers(tmp_path):
    data = tg.fixed_modulus(16, length=9, rng=tg.generator(0, "split"), draws=4)
    net = tg.GPT.numbers(vocab=16, width=32, context=8)
    run = tg.SequenceTraining.on_task(net, data, batch=64, seed=0, lr=1e-2, weight_decay=0.1)
    history = run.fit(steps=60, log_every=20)
    assert history["train_loss"][-1].mean() < 0.95 * history["train_loss"][0].mean()
    run.plot(tmp_path / "lcg.png")
    assert is_png(tmp_path / "lcg.png")
    assert set(history) == {
        "step",
        *(f"{s}_{q}" for s in ("train", "16") for q in ("accuracy", "loss")),
    }


def test_a_gpt_on_tasks_in_context(tmp_path):
    data = tg.InContextData.make(5, 4, 8, 0.6, tg.generator(0, "split"))
    net = tg.GPT.in_context(vocab=5, width=16, depth=1, heads=2, context=12)
    run = tg.SequenceTraining.on_task(net, data, batch=16, seed=0, lr=1e-2, weight_decay=0.5)
    history = run.fit(steps=20)
    assert history["id_train_loss"][-1].mean() < history["id_train_loss"][0].mean()
    run.plot(tmp_path / "in_context.png")
    assert is_png(tmp_path / "in_context.png")
    with pytest.raises(InputError, match="a batch of 17 sequences"):
        tg.SequenceTraining.on_task(net, data, batch=17).step()


def noisy_squares():
    """Images of two classes: a bright left or a bright right half, under noise."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 400)
    x = rng.normal(size=(400, 4, 4, 1))
    x[y == 0, :, :2] += 1
    x[y == 1, :, 2:] += 1
    return Images(x[:300], y[:300], x[300:], y[300:])


def test_a_chain_on_images(tmp_path):
    images = noisy_squares()
    net = tg.deep_mlp(inputs=16, width=20, depth=3, classes=2)
    run = tg.ImageTraining.on_task(net, images, batch=32, seed=0, lr=1e-2, weight_decay=1e-3)
    history = run.fit(steps=60)
    assert history["test_accuracy"][-1] > 0.9
    run.plot(str(tmp_path / "images.png"))
    assert is_png(tmp_path / "images.png")


def test_weights_optimiser_and_device_of_ones_own():
    net = tg.vgg((4, 4, 1), 2, (4, "M", 8), batchnorm=True)
    weights = net.init(tg.generator(3, "init")) | net.init_buffers()
    weights["conv.0.norm.mean"] += 1
    run = tg.ImageTraining.on_task(
        net,
        noisy_squares(),
        weights=weights,
        device=tg.get_device("cpu", "float64", 1),
        optimizer=tg.SGD,
        momentum=0.9,
        shifts=1,
    )
    assert run.dev.dtype == np.float64
    assert run.optimizer.momentum == 0.9
    np.testing.assert_array_equal(run.params["readout.weight"], weights["readout.weight"])
    np.testing.assert_array_equal(run.objective.buffers["conv.0.norm.mean"], np.ones(4))
    run.step()


@pytest.mark.slow
def test_no_figure_of_an_ensemble_or_without_matplotlib(tmp_path, monkeypatch, host_dev):
    from helpers import small_run

    with pytest.raises(InputError, match="one network"):
        small_run(host_dev, seeds=[0, 1]).plot(tmp_path / "x.png")
    one = small_run(host_dev)
    one.fit(steps=2)
    one.plot(tmp_path / "x.png")
    assert is_png(tmp_path / "x.png")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="matplotlib is not installed"):
        one.plot(tmp_path / "y.png")
    assert not (tmp_path / "y.png").exists()


def test_a_figure_before_the_first_step(tmp_path, host_dev):
    from helpers import small_run

    small_run(host_dev).plot(tmp_path / "x.png")
    assert is_png(tmp_path / "x.png")


def test_unknown_stream_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="unknown stream 'noise': choose init, split"):
        tg.generator(0, "noise")


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "examples/library.md"])
def test_the_scripts_of_the_pages(page, tmp_path):
    """Every Python block of a page, one after another, as a reader would paste them."""
    pytest.importorskip("sklearn", reason="scikit-learn, whose digits are read, is not installed")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "1.0"
