"""What all networks have in common: the protocol, and the tape that a user gets."""

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinygrok.engine.errors import InputError
from tinygrok.models.chain import Chain
from tinygrok.models.gpt import GPT
from tinygrok.models.inspect import run_with_tape
from tinygrok.models.mlp import TwoLayerNet
from tinygrok.models.protocol import TRAINING, Model, NeuronModel
from tinygrok.models.vision import deep_mlp, mixer, resmlp, resnet, vgg, vit

P, B, T = 7, 3, 5
MODELS: dict[str, Model] = {
    "two layers": TwoLayerNet(P, 6),
    "two layers, batchnorm": TwoLayerNet(P, 6, activation="gelu", batchnorm=True),
    "gpt": GPT(P, 8, 2, 2, T),
    "gpt digits": GPT.base_b(P, 8, 2, 2, 3, 2, recompute=True),
    "chain": Chain([("a", (("reshape", -1), ("linear", "a", 48, 4)))]),
    "deep mlp": deep_mlp(48, 6, 2, 4, "tanh", "batch", 0.5),
    "resmlp": resmlp((4, 4, 3), 4, 2, 6, 1, 8),
    "mixer": mixer((4, 4, 3), 4, 2, 6, 1, (3, 8)),
    "vgg": vgg((4, 4, 3), 4, (3, "M", 5), batchnorm=True),
    "vit": vit((4, 4, 3), 4, 2, 6, 1, 3),
    "resnet": resnet((4, 4, 3), 4, 8, 2, "batchnorm"),
}
BY_NEURONS: NeuronModel = TwoLayerNet(P, 6)
each_model = pytest.mark.parametrize("kind", MODELS)


def inputs_of(model):
    rng = np.random.default_rng(1)
    if isinstance(model, TwoLayerNet):
        return rng.integers(P, size=(2, B))
    if isinstance(model, GPT):
        return rng.integers(P, size=(B, T))
    return rng.standard_normal((B, 4, 4, 3))


def weights_of(model):
    rng = np.random.default_rng(0)
    return {n: 0.4 * rng.standard_normal(s) for n, s in model.shapes.items()}


@each_model
def test_models_follow_the_protocol(host_dev, kind):
    """Every member is there, methods take what the protocol's take, and a step runs by it."""
    model = MODELS[kind]
    for name in (*vars(Model), *Model.__annotations__):
        if name.startswith("_"):
            continue
        found = getattr(model, name)
        if inspect.isfunction(vars(Model).get(name)):
            asked = list(inspect.signature(getattr(Model, name)).parameters.values())[1:]
            given = list(inspect.signature(found).parameters.values())
            assert [(p.name, p.default) for p in given[: len(asked)]] == [
                (p.name, p.default) for p in asked
            ]
            assert all(p.default is not p.empty for p in given[len(asked) :])
    assert set(model.init_buffers()) == set(model.buffers)
    w = weights_of(model) | model.init_buffers()
    z, tape = model.forward(host_dev, w, model.prepare(host_dev, inputs_of(model)), TRAINING)
    g = {n: np.full(s, np.nan) for n, s in model.shapes.items()}
    model.backward(host_dev, np.ones_like(z), tape, g)
    assert all(np.isfinite(x).all() for x in g.values())
    assert all(callable(s.forward) and callable(s.backward) for s in model.stages(host_dev, w))


def test_the_activation_of_a_two_layer_network_follows_its_terms():
    """x^S, that of the weights that are written down; another one where it is given."""
    kinds = {S: TwoLayerNet(P, 6, S).activation for S in (1, 2, 3, 4)}
    assert kinds == {1: "power1", 2: "square", 3: "power3", 4: "power4"}
    assert TwoLayerNet(P, 6, 4, "gelu").activation == "gelu"
    for unknown in ("", "swish"):
        with pytest.raises(InputError, match="unknown activation"):
            TwoLayerNet(P, 6, 4, unknown)


@pytest.mark.parametrize("terms", [1, 3])
def test_inputs_of_another_number_of_terms_are_refused(host_dev, terms):
    """The tables that an input lacks, or has too many of, would be passed over in silence."""
    with pytest.raises(InputError, match="must have 2 rows"):
        BY_NEURONS.prepare(host_dev, np.zeros((terms, B), int))


def test_sizes_that_are_no_integers_are_refused():
    half: Any = 97.5
    with pytest.raises(InputError, match="p must be integers, not 97.5"):
        TwoLayerNet(half, 6)
    with pytest.raises(InputError, match="vocab must be integers, not 97.5"):
        GPT(half, 8, 1, 2, T)
    whole: Any = 7.0
    assert TwoLayerNet(whole, 6).shapes["U"] == (2, 7, 6)


@pytest.mark.slow
def test_types():
    """The networks above are Models for the type checker too, and the models' code is clean."""
    pytest.importorskip("pyright", reason="pyright is not installed")
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "pyright", "tinygrok/models", "tests/test_models.py"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stdout


def test_parts_of_the_neurons_add_up(host_dev):
    for name in MODELS:
        assert MODELS[name].by_neurons == isinstance(MODELS[name], TwoLayerNet)
    weights, inputs = given("two layers")
    rows = BY_NEURONS.prepare(host_dev, inputs)
    parts = [BY_NEURONS.neurons(weights, part) for part in (slice(0, 2), slice(2, 6))]
    logits = [BY_NEURONS.forward(host_dev, part, rows)[0] for part in parts]
    whole, _ = BY_NEURONS.forward(host_dev, weights, rows)
    np.testing.assert_allclose(logits[0] + logits[1], whole, rtol=1e-12)


# -- run_with_tape ---------------------------------------------------------------------------------


@each_model
def test_run_with_tape(host_dev, kind):
    """Logits and arrays of the tape are those of forward, in evaluation, on the host."""
    model = MODELS[kind]
    weights = weights_of(model)
    given = {n: x.copy() for n, x in weights.items()}
    logits, tape = run_with_tape(model, weights, inputs_of(model))
    w = weights | model.init_buffers()
    expected, everything = model.forward(host_dev, w, model.prepare(host_dev, inputs_of(model)))
    np.testing.assert_array_equal(logits, expected)
    for name, x in everything.items():
        if isinstance(x, np.ndarray):
            np.testing.assert_array_equal(tape[name], x)
    assert all(isinstance(n, str) and isinstance(x, np.ndarray) for n, x in tape.items())
    assert all((weights[n] == x).all() for n, x in given.items())
    single, _ = run_with_tape(model, weights, inputs_of(model), dtype="float32")
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, logits, rtol=1e-4, atol=1e-4)


def test_names_on_the_tape():
    two = run_with_tape(MODELS["two layers"], *given("two layers"))[1]
    assert set(two) == {"hidden.pre", "hidden.post", "logits"}
    chain = run_with_tape(MODELS["vgg"], *given("vgg"))[1]
    assert set(chain) == {"conv.0", "conv.1", "readout"}
    block = ("in", "ln1", "attn.q", "attn.k", "attn.v", "attn.pattern", "attn.out", "mid")
    block += ("ln2", "mlp.pre", "mlp.hidden", "end")
    names = {f"blocks.{i}.{name}" for i in range(2) for name in block}
    for kind in ("gpt", "gpt digits"):
        gpt = run_with_tape(MODELS[kind], *given(kind))[1]
        assert set(gpt) == names | {"final", "logits"}


def given(kind):
    return weights_of(MODELS[kind]), inputs_of(MODELS[kind])


def test_buffers_are_taken_where_given():
    """Running statistics of a checkpoint count; without them those of a fresh network do."""
    model = MODELS["two layers, batchnorm"]
    weights, inputs = given("two layers, batchnorm")
    fresh, _ = run_with_tape(model, weights, inputs)
    zero, _ = run_with_tape(model, weights | model.init_buffers(), inputs)
    moved, _ = run_with_tape(model, {**weights, "norm.mean": np.ones(6)}, inputs)
    with_variance = {**weights, "norm.mean": np.ones(6), "norm.var": np.full(6, 2.0)}
    both, _ = run_with_tape(model, with_variance, inputs)
    np.testing.assert_array_equal(fresh, zero)
    assert np.abs(moved - fresh).max() > 1e-2
    assert np.abs(both - moved).max() > 1e-2


def test_an_unknown_norm_is_refused():
    with pytest.raises(InputError, match="unknown norm 'layer': choose none, pre"):
        deep_mlp(4, 4, 1, 2, norm="layer")
