"""The other networks on pairs: against definitions and PyTorch twins, alone and in ensembles; the
measures of the answer's waves."""

import json
import math
import subprocess
import sys
from pathlib import Path

import _figures_corrupted_labels
import _figures_nets
import _nets
import corrupted_labels
import grok_addition
import numpy as np
import pytest

import tinygrok as tg
from tinygrok.audit.case import cpu_device
from tinygrok.engine.errors import InputError
from tinygrok.engine.optim import AdamW
from tinygrok.engine.params import Arena
from tinygrok.engine.rng import generator, mask_keys
from tinygrok.models.interop import to_torch_state_dict
from tinygrok.models.pairs import PairTransformer, ThreeLayerNet
from tinygrok.models.protocol import Mode
from tinygrok.probes.fourier import answer_means, answer_waves, ipr, mean_known
from tinygrok.tasks.modular import addition
from tinygrok.training.checkpoint import load_training, save_training
from tinygrok.training.tables import Evaluation, Training

EXAMPLES = Path(__file__).parent.parent / "examples"
HOST = cpu_device()
P = 7
NETS = {"three layers": ThreeLayerNet(P, 10), "two tokens": PairTransformer(P, 8, 2)}
each_net = pytest.mark.parametrize("kind", NETS)


def normal(net, lead=()):
    rng = np.random.default_rng(3)
    return {name: 0.5 * rng.standard_normal((*lead, *s)) for name, s in net.shapes.items()}


# -- definitions -----------------------------------------------------------------------------------


def by_definition(net, w, a, b):
    """The logits of one pair, written down as the formulas of the docstrings."""
    if isinstance(net, ThreeLayerNet):
        first = np.maximum(w["U"][0, a] + w["U"][1, b], 0)
        second = np.maximum(w["V"].T @ first, 0)
        return w["W"].T @ second
    C = net.width
    D = C // net.heads
    h = w["embed.token"][[a, b]] + w["embed.position"]
    qkv = h @ w["blocks.0.attn.qkv.weight"]
    y = np.empty(C)
    for head in range(net.heads):
        own = slice(head * D, (head + 1) * D)
        q, k, v = (qkv[:, part * C : (part + 1) * C][:, own] for part in range(3))
        scores = k @ q[1] / D
        attention = np.exp(scores) / np.exp(scores).sum()
        y[own] = attention @ v
    h = h[1] + y @ w["blocks.0.attn.out.weight"]
    hidden = np.maximum(h @ w["blocks.0.mlp.in.weight"], 0)
    h = h + hidden @ w["blocks.0.mlp.out.weight"]
    return w["head"] @ h / C


@each_net
def test_logits_by_definition(kind):
    net = NETS[kind]
    w = normal(net)
    pairs = np.array([[1, 2, 4, 6], [3, 3, 0, 6]])
    z, _ = net.forward(HOST, w, net.prepare(HOST, pairs))
    expected = [by_definition(net, w, a, b) for a, b in pairs.T]
    np.testing.assert_allclose(z, expected, rtol=1e-12)


@each_net
def test_initial_weights(kind):
    """Normal(0, 2/fan_in) of three layers; Normal(0, 1) embeddings and Normal(0, 1/fan_in)."""
    if kind == "three layers":
        net = ThreeLayerNet(97, 200)
        variances = {"U": 2 / (2 * 97), "V": 2 / 200, "W": 2 / 200}
    else:
        net = PairTransformer(97, 64)
        variances = {"embed.token": 1, "embed.position": 1, "blocks.0.mlp.out.weight": 1 / 256}
        others = ("blocks.0.attn.qkv.weight", "blocks.0.attn.out.weight", "blocks.0.mlp.in.weight")
        variances |= dict.fromkeys((*others, "head"), 1 / 64)
    weights = net.init(np.random.default_rng(0))
    assert set(weights) == set(net.shapes) == set(variances)
    for name, x in weights.items():
        found = (x**2).mean() / variances[name]
        assert abs(found - 1) < 5 * math.sqrt(2 / x.size), name
        assert abs(x.mean()) < 5 * math.sqrt(variances[name] / x.size), name


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match="does not split into 4 heads"):
        PairTransformer(7, 10)
    with pytest.raises(InputError, match="a sequence of 3 tokens, but the context is 2"):
        NETS["two tokens"].forward(
            HOST,
            normal(NETS["two tokens"]),
            NETS["two tokens"].prepare(HOST, np.zeros((3, 4), int)),
        )
    for net in NETS.values():
        with pytest.raises(InputError, match="no class of the papers"):
            to_torch_state_dict(net, normal(net))
        run = Training.on_task(net, addition(P), 0.7, device=HOST)
        with pytest.raises(InputError, match="the figure shows a two-layer network"):
            run.figure("x.png")


# -- dropout ---------------------------------------------------------------------------------------


def test_dropout_of_three_layers_has_two_masks_and_knows_its_rows():
    """Shards get the masks of the whole batch; a mask has the values 0 and 1/(1 - rate)."""
    net = ThreeLayerNet(P, 60)
    w = normal(net)
    keys = mask_keys(0, step=3)
    pairs = np.random.default_rng(0).integers(0, P, (2, 40))
    mode = Mode(True, (keys, 0.4))
    z, tape = net.forward(HOST, w, net.prepare(HOST, pairs), mode)
    (first,), (second,) = tape["first"]["dropout"], tape["dropout"]
    for mask in (first, second):
        assert set(np.unique(mask)) == {0.0, 1 / 0.6}
        assert abs((mask == 0).mean() - 0.4) < 0.04
    both = ((first == 0) & (second == 0)).mean()
    assert abs(both - 0.16) < 0.03  # independent
    late = net.prepare(HOST, pairs[:, 25:])
    part, _ = net.forward(HOST, w, late, mode._replace(offset=25))
    np.testing.assert_allclose(part, z[25:], rtol=1e-12)


# -- training --------------------------------------------------------------------------------------


def run_of(dev, net, seeds, dropout=0.0):
    """Training on addition; seeds of several members make an ensemble with own splits."""
    task = addition(P)
    members = seeds if isinstance(seeds, list) else [seeds]
    lead = len(members) if isinstance(seeds, list) else None
    params, grads = (Arena(dev, net.shapes, lead) for _ in range(2))
    data, masks = [], []
    for e, seed in enumerate(members):
        params.load(net.init(generator(seed, "init")), None if lead is None else e)
        numbers, _ = task.split(0.6, generator(seed, "split"))
        inputs = task.inputs(numbers)
        data.append((inputs, task.labels(inputs)))
        masks.append(np.isin(np.arange(task.size), numbers))
    mask = masks[0] if lead is None else np.stack(masks)
    everything = task.inputs(np.arange(task.size))
    splits = {"train": (mask, "true"), "test": (~mask, "true")}
    evaluation = Evaluation(everything, {"true": task.labels(everything)}, splits)
    optimizer = AdamW(dev, params, grads, lr=0.01, weight_decay=0.5)
    return Training(dev, net, optimizer, data, evaluation, seeds, "cross_entropy", None, dropout)


@each_net
def test_an_ensemble_is_its_members(kind, dev):
    """On a CPU bit by bit; where all members are computed at once up to rounding."""
    net = NETS[kind]
    rate = 0.2 if kind == "three layers" else 0.0
    together = run_of(dev, net, [0, 1, 2], rate)
    together.fit(6, 3)
    for e, seed in enumerate([0, 1, 2]):
        alone = run_of(dev, net, seed, rate)
        alone.fit(6, 3)
        exact = dev.kind == "cpu"
        for name, x in alone.params.to_host().items():
            y = together.params.to_host(e)[name]
            tolerance = 0 if exact else 2e-4
            np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance, err_msg=name)
        losses = np.array(together.history["test_loss"])[:, e]
        np.testing.assert_allclose(losses, alone.history["test_loss"], rtol=0 if exact else 1e-3)


@each_net
def test_a_run_resumes_bit_by_bit(kind, tmp_path):
    net = NETS[kind]
    rate = 0.2 if kind == "three layers" else 0.0
    straight = run_of(HOST, net, 4, rate)
    straight.fit(12, 3)
    begun = run_of(HOST, net, 4, rate)
    begun.fit(6, 3)
    save_training(tmp_path / "a.npz", begun, {})
    resumed = run_of(HOST, net, 4, rate)
    load_training(tmp_path / "a.npz", resumed, {})
    resumed.fit(12, 3)
    for name, x in straight.params.to_host().items():
        np.testing.assert_array_equal(resumed.params.to_host()[name], x)
    assert straight.history == resumed.history


# -- the twins of the authors' classes -------------------------------------------------------------


def encoder(torch, w, C, H, pairs):
    """The authors' encoder of one block in PyTorch, at its last position: both tokens go through
    all of it, attention without a mask."""
    F = torch.nn.functional
    B = pairs.shape[1]
    x = w["embed.token"][pairs.T] + w["embed.position"]
    q, k, v = (x @ w["blocks.0.attn.qkv.weight"]).split(C, dim=2)
    q, k, v = (t.view(B, 2, H, C // H).transpose(1, 2) for t in (q, k, v))
    attention = F.softmax(q @ k.transpose(-2, -1) / (C // H), dim=-1)
    y = (attention @ v).transpose(1, 2).reshape(B, 2, C)
    x = x + y @ w["blocks.0.attn.out.weight"]
    x = x + F.relu(x @ w["blocks.0.mlp.in.weight"]) @ w["blocks.0.mlp.out.weight"]
    return (x @ w["head"].T * C**-1.0)[:, -1, :]


def three_linear(torch, w, pairs):
    """Three linear layers without biases on one-hot inputs side by side."""
    F = torch.nn.functional
    onehot = torch.cat([F.one_hot(n, P) for n in pairs], dim=1).double()
    h = F.linear(onehot, torch.cat(list(w["U"])).T)
    h = F.linear(F.relu(h), w["V"].T)
    return F.linear(F.relu(h), w["W"].T)


@pytest.mark.torch
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@each_net
def test_twins_in_pytorch(kind, loss):
    """Loss, all gradients, and weights after steps of AdamW that decays every tensor."""
    torch = pytest.importorskip("torch", reason="torch is not installed (the oracle extra)")
    F = torch.nn.functional
    net = NETS[kind]
    task = addition(P)
    options = {"lr": 0.01, "weight_decay": 2.0, "betas": (0.9, 0.98), "loss": loss}
    run = Training.on_task(net, task, 0.7, seed=1, device=HOST, **options)
    w = {n: torch.nn.Parameter(torch.tensor(x)) for n, x in run.params.to_host().items()}
    pairs, target = map(torch.tensor, run.data[0])
    optimizer = torch.optim.AdamW(w.values(), lr=0.01, betas=(0.9, 0.98), weight_decay=2.0)
    for t in range(1, 6):
        if kind == "three layers":
            z = three_linear(torch, w, pairs)
        else:
            z = encoder(torch, w, net.width, net.heads, pairs)
        if loss == "mse":
            value = F.mse_loss(z, F.one_hot(target, P).double())
        else:
            value = F.cross_entropy(z, target)
        optimizer.zero_grad()
        value.backward()
        np.testing.assert_allclose(run.step(), value.item(), rtol=1e-12)
        assert run.t == t
        for name, x in run.grads.to_host().items():
            np.testing.assert_allclose(x, w[name].grad, rtol=1e-9, atol=1e-12, err_msg=name)
        optimizer.step()
        for name, x in run.params.to_host().items():
            np.testing.assert_allclose(x, w[name].detach(), rtol=1e-8, atol=1e-10, err_msg=name)


# -- waves of the answer ---------------------------------------------------------------------------


def table_of_logits(p):
    y = np.add.outer(np.arange(p), np.arange(p)) % p
    return np.random.default_rng(0).standard_normal((p * p, p)), y.ravel()


def test_waves_of_the_answer_are_projections_on_two_directions_a_frequency():
    """cos(w k (n1 + n2)) and sin(...), built from the two-dimensional Fourier basis as in the code
    of Nanda et al."""
    p = 11
    logits, y = table_of_logits(p)
    n = np.arange(p)
    expected = np.zeros_like(logits)
    for k in (2, 5):
        cos = np.cos(2 * np.pi * k * n / p) / math.sqrt(p / 2)
        sin = np.sin(2 * np.pi * k * n / p) / math.sqrt(p / 2)
        along = np.outer(cos, cos) - np.outer(sin, sin)
        across = np.outer(sin, cos) + np.outer(cos, sin)
        for direction in (along.ravel() / math.sqrt(2), across.ravel() / math.sqrt(2)):
            expected += np.outer(direction, direction @ logits)
    found = answer_waves(answer_means(logits, y, range(p)), [2, 5])[y]
    np.testing.assert_allclose(found, expected, atol=1e-13)
    with_constant = answer_waves(answer_means(logits, y, range(p)), [0, 2, 5])[y]
    np.testing.assert_allclose(with_constant, expected + logits.mean(axis=0), atol=1e-13)


def test_all_waves_of_the_answer_are_its_means():
    p = 7
    logits, y = table_of_logits(p)
    means = answer_means(logits, y, range(p))
    np.testing.assert_allclose(means[3], logits[y == 3].mean(axis=0))
    np.testing.assert_allclose(answer_waves(means, range(4)), means, atol=1e-14)
    assert not answer_waves(means, []).any()


def test_waves_of_products_run_along_powers_of_a_root():
    task = tg.TASKS["multiplication"](7)
    inputs = task.inputs(np.arange(task.size))
    y = task.labels(inputs)
    order = task.wave_order
    place = np.argsort(order)  # of the answers 1, ..., 6
    wave = np.cos(2 * np.pi * 2 * np.arange(6) / 6)
    logits = np.zeros((task.size, 7))
    known = y > 0
    logits[known] = wave[place[y[known] - 1], None]
    means = answer_means(logits, y, order)
    np.testing.assert_allclose(means, np.tile(wave[:, None], 7), atol=1e-14)
    np.testing.assert_allclose(answer_waves(means, [2]), means, atol=1e-14)
    assert np.abs(answer_waves(means, [1, 3])).max() < 1e-14


# -- in the examples -------------------------------------------------------------------------------


@each_net
def test_losses_without_and_by_waves(kind, dev):
    """Without any: the training loss; by the constant and all waves: the loss of the mean logits
    of every answer."""
    run = Training.on_task(NETS[kind], addition(P), 0.7, device=dev, loss="cross_entropy")
    run.extra = _nets.record
    run.fit(4, 2)
    tolerance = 1e-10 if dev.dtype == "float64" else 1e-4
    waves = _nets.Waves(run)
    assert waves.excluded([]) == pytest.approx(run.history["train_loss"][-1], rel=tolerance)
    z = waves.means
    losses = np.log(np.exp(z).sum(axis=1)) - np.diag(z)
    assert _nets.restricted(run, z, [1, 2, 3]) == pytest.approx(losses.mean(), rel=tolerance)
    alone = run.history["excluded_alone"][-1]
    assert alone.shape == (4,)
    assert alone[2] == pytest.approx(waves.excluded([2]), rel=tolerance)
    found = _nets.results(run)
    assert found["excluded_loss"] == waves.excluded(found["key_frequencies"])
    assert not {"answer_means", "excluded_alone"} & set(_nets.columns(run.history))


def test_key_frequencies_are_those_with_power():
    answers = np.arange(23)
    waves = [np.cos(2 * np.pi * k * (answers[:, None] - answers) / 23) for k in (7, 3, 5)]
    means = 2 * waves[0] + 3 * waves[1] + 0.3 * waves[2] + 50
    assert _nets.key_frequencies(means) == [3, 7]  # 5 has less than a twentieth of the power


def test_rows_of_a_transformer_are_channels():
    net = NETS["two tokens"]
    rows = _nets.rows_of(normal(net))
    assert {name: x.shape for name, x in rows.items()} == {"E": (8, P), "W": (8, P)}
    token = np.cos(2 * np.pi * 2 * np.arange(P) / P)
    weights = normal(net) | {"embed.token": np.tile(token[:, None], 8)}
    assert _nets.mean_ipr(weights, np.arange(P)) == pytest.approx(1)


def test_the_mean_ipr_of_an_ensemble_is_that_of_its_members():
    run = run_of(HOST, NETS["two tokens"], [0, 1])
    run.order = np.arange(P)
    found = _nets.record(run)
    assert set(found) == {"ipr_mean"}
    expected = [_nets.mean_ipr(run.params.to_host(e), run.order) for e in range(2)]
    assert found["ipr_mean"].tolist() == expected


def test_no_legend_covers_a_curve_of_excluded_losses(monkeypatch):
    figures = []
    monkeypatch.setattr(_figures_nets, "save", lambda fig, path: figures.append(fig))
    run = Training.on_task(NETS["two tokens"], addition(P), 0.7, device=HOST)
    run.extra = _nets.record
    run.fit(4, 2)
    _figures_nets.grokking(run, "x.png")
    fig = figures[0]
    fig.draw_without_rendering()
    excluded = fig.subfigs[1].axes[1]
    assert excluded.get_legend().get_window_extent().y0 > excluded.get_window_extent().y1


def example(name, *flags, folder):
    words = " ".join(flags).split()
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("net", ["mlp3", "transformer"])
@pytest.mark.parametrize("name", ["grok_addition", "corrupted_labels"])
def test_examples_with_every_net_go_on_bit_by_bit(name, net, tmp_path):
    small = f"--net {net} --p 11 --width 12 --log-every 10 --threads 1"
    small += " --batch-size 30" if name == "grok_addition" else " --seeds 2"
    example(name, small, "--steps 40 --out straight", folder=tmp_path)
    example(name, small, "--steps 20 --out a", folder=tmp_path)
    example(name, small, "--steps 40 --out a --resume", folder=tmp_path)
    straight, resumed = (np.load(tmp_path / f"{x}/checkpoint.npz") for x in ("straight", "a"))
    assert set(straight.files) == set(resumed.files)
    for array in set(straight.files) - {"meta"}:
        np.testing.assert_array_equal(straight[array], resumed[array], err_msg=array)
    written = [json.loads((tmp_path / f"{x}/run.json").read_text()) for x in ("straight", "a")]
    assert written[0]["results"] == written[1]["results"]
    figures = {"grok_addition.png"} if name == "grok_addition" else {"rows.png", "training.png"}
    assert figures <= {path.name for path in (tmp_path / "straight").iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("net", ["mlp3", "transformer"])
def test_a_quick_run_without_a_regulariser_memorises(net, tmp_path):
    """As a newcomer sees it: the corrupted labels are known, and the unseen pairs are not."""
    example("corrupted_labels", f"--quick --net {net}", folder=tmp_path)
    found = json.loads((tmp_path / "runs/corrupted_labels/run.json").read_text())["results"]
    assert found["phase"] == "Memorization"
    assert found["corrupted_accuracy"] > 0.97
    assert found["test_accuracy"] < 0.1


@pytest.mark.parametrize("net", ["mlp2", "mlp3", "transformer"])
def test_what_is_recorded_of_corrupted_labels(net):
    """Rows in the order of the task's waves, norms of all of them."""
    flags = ["--net", net, "--task", "multiplication", "--p", "7", "--width", "8", "--seeds", "2"]
    args = corrupted_labels.arguments(flags)
    order = tg.TASKS["multiplication"](7).wave_order
    run = corrupted_labels.build(args, HOST, order)
    row = run.measure()
    names = ("E", "W") if net == "transformer" else ("U1", "U2", "W")
    members = range(run.params.members)
    for name in names:
        rows = [_nets.rows_of(run.params.to_host(e), order)[name] for e in members]
        np.testing.assert_array_equal(row[f"ipr_{name}"], [mean_known(ipr(x)) for x in rows])
        every = [_nets.rows_of(run.params.to_host(e))[name] for e in members]
        np.testing.assert_array_equal(row[f"norm_{name}"], list(map(np.linalg.norm, every)))
    assert ("filtered_test" in row) == (net == "mlp2")
    assert row["as_given"].shape == (run.params.members, 49)


def test_rows_that_have_decayed_to_nothing_are_drawn(tmp_path):
    ends = (np.full(3, 0.2), np.full(3, np.nan))
    _figures_corrupted_labels.rows({"E": ends, "W": ends[::-1]}, tmp_path / "x.png")
    assert (tmp_path / "x.png").exists()


@pytest.mark.parametrize("module", [grok_addition, corrupted_labels])
def test_help_lists_the_activations_that_a_network_takes(module, capsys):
    for net, listed in (("mlp3", True), ("transformer", False)):
        with pytest.raises(SystemExit):
            module.arguments(["--net", net, "--help"])
        assert ("leaky_relu" in capsys.readouterr().out) == listed


def test_paper_phases_stand_beside_ours_in_their_setting_only():
    def paper(flags):
        return corrupted_labels.paper_of(corrupted_labels.arguments(flags.split()))

    transformer = "--net transformer --regularizer weight_decay"
    assert paper(transformer) == {"phase": "Full Inversion"}
    assert paper(f"{transformer} --strength 10") == {"phase": "Coexistence"}
    assert paper(f"{transformer} --strength 11") == {}
    assert paper(f"{transformer} --p 59") == {}
    assert paper("--net mlp3") == {}
    assert paper("--regularizer weight_decay")["train_accuracy"] == "0.654"
