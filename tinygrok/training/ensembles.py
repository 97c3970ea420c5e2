"""Networks trained on corrupted labels, many at once: an ensemble from a list of points, and what
became of each.

A point is a plain dictionary. These settings may differ from member to member of a pack:

    alpha  training fraction      xi  corrupted fraction      rule  of corruption (tasks/corruption.py)
    weight_decay, dropout, lr, seed

and these are common to a pack: p, width, task, activation, loss, batch_size, batchnorm, steps,
log_every, dtype.
Source: To grok or not to grok, arXiv 2310.13061.
"""

import numpy as np

from ..engine.device import Device, get_device
from ..engine.errors import InputError
from ..engine.optim import AdamW
from ..engine.params import Arena
from ..engine.rng import generator
from ..models.mlp import TwoLayerNet
from ..probes.phases import phase, two_stages
from ..tasks import TASKS
from ..tasks.corruption import corrupt
from .loop import NonFiniteLoss, fit
from .tables import Evaluation, Training

DEFAULTS = {
    "alpha": 0.5,
    "xi": 0.35,
    "rule": "uniform",
    "weight_decay": 0.0,
    "dropout": 0.0,
    "lr": 0.01,
    "seed": 0,
    "p": 97,
    "width": 500,
    "task": "addition",
    "activation": "square",
    "loss": "mse",
    "batch_size": None,
    "batchnorm": False,
    "steps": 1000,
    "log_every": 10,
    "dtype": "float32",
}
OWN = ("alpha", "xi", "rule", "weight_decay", "dropout", "lr", "seed")  # may differ between members
PACK_MEMBERS = 8  # on the CPU a pack only has to keep the worker threads busy; small packs lose little when killed


def complete(point: dict) -> dict:
    """The point with defaults filled in; InputError for a setting that does not exist."""
    unknown = set(point) - set(DEFAULTS)
    if unknown:
        raise InputError(f"a point has no setting {', '.join(sorted(unknown))}")
    return DEFAULTS | point


def packs(points: list[dict], size: int) -> list[list[dict]]:
    """Cut points, completed, into packs of at most `size` members that share their common
    settings."""
    groups: dict[tuple, list[dict]] = {}
    for point in map(complete, points):
        groups.setdefault(tuple(point[k] for k in DEFAULTS if k not in OWN), []).append(point)
    return [group[i : i + size] for group in groups.values() for i in range(0, len(group), size)]


def pack_size(dev: Device, point: dict, processes: int = 1) -> int:
    """Members that train together: on a GPU as many as fill half of its memory, shared by some
    processes. A member holds weights, gradients and two moments, and per row of the table four
    hidden activations and two logits. The size depends on the card and not on what else runs on it,
    so that a sweep that starts again cuts the same packs."""
    if dev.kind == "cpu":
        return PACK_MEMBERS
    p, N = point["p"], point["width"]
    member = dev.dtype.itemsize * (4 * 3 * p * N + p * p * (4 * N + 2 * p))
    return max(1, int(dev.memory_bytes() / 2 / processes // member))


def build(dev: Device, points: list[dict], extra=lambda run: {}) -> Training:
    """The ensemble of a pack: every member has its own split, corruption, initial weights and
    hyperparameters, all drawn from streams of its own seed."""
    points = [complete(point) for point in points]
    common = points[0]
    if any(point[k] != common[k] for point in points for k in DEFAULTS if k not in OWN):
        raise InputError("the members of a pack must share all settings but " + ", ".join(OWN))
    task = TASKS[common["task"]](common["p"])
    everything = task.inputs(np.arange(task.size))
    true = task.labels(everything)
    net = TwoLayerNet(
        common["p"], common["width"], activation=common["activation"], batchnorm=common["batchnorm"]
    )
    params, grads = Arena(dev, net.shapes, len(points)), Arena(dev, net.shapes, len(points))
    given, data = np.tile(true, (len(points), 1)), []
    train, wrong = np.zeros((2, *given.shape), dtype=bool)
    for e, point in enumerate(points):
        params.load(net.init(generator(point["seed"], "init")), e)
        numbers, _ = task.split(point["alpha"], generator(point["seed"], "split"))
        labels, corrupted = corrupt(
            task, numbers, point["xi"], generator(point["seed"], "corruption"), point["rule"]
        )
        data.append((task.inputs(numbers), labels))
        given[e, numbers], train[e, numbers], wrong[e, numbers] = labels, True, corrupted
    splits = {
        "train": (train, "given"),
        "corrupted": (wrong, "given"),
        "corrupted_true": (wrong, "true"),
        "uncorrupted": (train & ~wrong, "given"),
        "test": (~train & task.defined(everything), "true"),
    }
    evaluation = Evaluation(everything, {"given": given, "true": true}, splits)
    own = {key: [point[key] for point in points] for key in OWN}
    optimizer = AdamW(
        dev, params, grads, lr=own["lr"], betas=(0.9, 0.98), weight_decay=own["weight_decay"]
    )
    return Training(
        dev,
        net,
        optimizer,
        data,
        evaluation,
        own["seed"],
        common["loss"],
        common["batch_size"],
        own["dropout"],
        extra,
    )


def hidden_units(
    run: Training, e: int, weights: dict[str, np.ndarray], buffers: dict | None = None
) -> np.ndarray:
    """What the read-out sees on the whole table (B, N), on the host, for host weights of one
    network. With BatchNorm the running statistics `buffers` apply, those of member e unless
    given."""
    dev = run.dev
    w = {
        k: dev.to_device(x)
        for k, x in (weights | (buffers or run.objective.buffers.to_host(e))).items()
    }
    parts = [
        run.model.forward(dev, w, shard.inputs)[1]["hidden.post"] for shard in run.table.shards()
    ]
    return np.concatenate([dev.to_host(a) for a in parts])


def gradient_shares(run: Training) -> np.ndarray:
    """|g_c| / (|g_c| + |g_u|), shape (E,): how much of the pull on the weights comes from corrupted
    labels, where g_c and g_u are the parts of the full-batch gradient (without dropout) due to
    corrupted and to uncorrupted examples.

    nan with BatchNorm, where the parts share their statistics and a pass in training mode would
    move the running ones."""
    if run.model.batchnorm:
        return np.full(run.params.members, np.nan)
    norms = []
    for split in ("corrupted", "uncorrupted"):
        mask, which = run.evaluation.splits[split]
        labels = np.broadcast_to(run.evaluation.labels[which], mask.shape)
        chosen = [
            np.flatnonzero(m) if m.any() else np.array([0]) for m in mask
        ]  # a stand-in for an empty part
        data = [(run.evaluation.inputs[:, i], x[i]) for i, x in zip(chosen, labels, strict=True)]
        run.objective.gradient(run.grads, run.make_batch(data))
        squares = sum(
            (run.dev.to_host(g) ** 2).sum(axis=tuple(range(1, g.ndim)))
            for g in run.grads.views.values()
        )
        norms.append(np.sqrt(squares) * mask.sum(axis=1))  # the gradient is a mean: back to a sum
    total = norms[0] + norms[1]
    return np.where(total > 0, norms[0] / np.where(total > 0, total, 1), np.nan)


def member_history(history: dict, e: int) -> dict[str, np.ndarray]:
    """The record of one member."""
    return {k: np.asarray(v) if k == "step" else np.asarray(v)[:, e] for k, v in history.items()}


def outcome(history: dict[str, np.ndarray], point: dict) -> dict:
    """What became of the member with these settings: final accuracies, phase, and the steps of
    grokking and unlearning."""
    result = {k: float(v[-1]) for k, v in history.items() if k.endswith("_accuracy")}
    result["best_test_accuracy"] = best = float(history["test_accuracy"].max())
    result["phase"] = phase(
        result["train_accuracy"], result["test_accuracy"], best, point["xi"], point["p"]
    )
    stages = two_stages(history["step"], history["test_accuracy"], history["corrupted_accuracy"])
    return result | dict(zip(("step_grok", "step_unlearn"), stages, strict=True))


def train_pack(points: list[dict], device: str = "auto", threads: int | None = None) -> list[dict]:
    """Train a pack from scratch: one outcome per point, with snapshots of the phase at a quarter
    and a half of the steps. A pure function of its points, made for sweep(). A member whose loss
    does not stay finite is "Diverged", its numbers None; the others train without it."""
    points = [complete(point) for point in points]
    steps = points[0]["steps"]
    run = build(get_device(device, points[0]["dtype"], threads), points)
    try:
        fit(run, steps, points[0]["log_every"])
    except NonFiniteLoss as error:
        others = points[: error.member] + points[error.member + 1 :]
        results = train_pack(others, device, threads) if others else []
        keys = outcome(member_history(run.history, error.member), points[error.member])
        lost = dict.fromkeys([*keys, "phase_quarter", "phase_half"]) | {"phase": "Diverged"}
        return [*results[: error.member], lost, *results[error.member :]]
    results = []
    for e, point in enumerate(points):
        history = member_history(run.history, e)
        results.append(outcome(history, point))
        for name, share in (("quarter", 0.25), ("half", 0.5)):
            until = int(np.searchsorted(history["step"], share * steps, side="right"))
            results[-1][f"phase_{name}"] = outcome(
                {k: v[:until] for k, v in history.items()}, point
            )["phase"]
    return [
        {k: None if v != v else v for k, v in result.items()} for result in results
    ]  # JSON knows no nan
