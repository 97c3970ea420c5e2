"""Networks trained on corrupted labels, many at once: an ensemble from a list of points, and what
became of each.

A point is a plain dictionary. These settings may differ from member to member of a pack:

    alpha  training fraction      xi  corrupted fraction      rule  of tasks/corruption.py
    weight_decay, dropout, lr, seed

and these are common to a pack: p, width, task, activation, loss, batch_size, batchnorm, steps,
log_every, dtype.
Source: To grok or not to grok, arXiv 2310.13061.
"""

from collections.abc import Callable

import numpy as np

from ..engine.device import Device, get_device
from ..engine.errors import InputError
from ..engine.optim import AdamW
from ..engine.params import Arena
from ..engine.rng import generator
from ..models.mlp import TwoLayerNet
from ..models.protocol import EVALUATION
from ..probes.phases import phase, two_stages
from ..tasks import TASKS
from ..tasks.corruption import corrupt
from ..tasks.modular import ModularTask
from .batches import Labelled, TableNet
from .checkpoint import fit_in_pack
from .loop import NonFiniteLoss
from .tables import Evaluation, Training

# The settings and their defaults: each member's own, and those that a pack shares.
OWN = {"alpha": 0.5, "xi": 0.35, "rule": "uniform", "weight_decay": 0.0, "dropout": 0.0}
OWN |= {"lr": 0.01, "seed": 0}
COMMON = {"p": 97, "width": 500, "task": "addition", "activation": "square", "loss": "mse"}
COMMON |= {"batch_size": None, "batchnorm": False, "steps": 1000, "log_every": 10}
COMMON |= {"dtype": "float32"}
DEFAULTS = OWN | COMMON
# On the CPU a pack only has to keep the worker threads busy; small packs lose little when killed.
PACK_MEMBERS = 8
SNAPSHOTS = {"phase_quarter": 0.25, "phase_half": 0.5}  # shares of the steps


# -- points and packs ------------------------------------------------------------------------------


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
        groups.setdefault(_common(point), []).append(point)
    result = []
    for group in groups.values():
        result += [group[i : i + size] for i in range(0, len(group), size)]
    return result


def _common(point: dict) -> tuple:
    """The settings that the members of a pack share."""
    return tuple(point[name] for name in COMMON)


def pack_size(dev: Device, point: dict, processes: int = 1) -> int:
    """Members that train together: on a GPU as many as fill half of its memory, shared by some
    processes.

    The size depends on the card and not on what else runs on it, so that a sweep that starts again
    cuts the same packs."""
    if dev.kind == "cpu":
        return PACK_MEMBERS
    p = point["p"]
    width = point["width"]
    kept = 4 * 3 * p * width  # weights, gradients and two moments
    row = 4 * width + 2 * p  # of the table: four hidden activations and two logits
    member = dev.dtype.itemsize * (kept + p * p * row)
    return max(1, int(dev.memory_bytes() / 2 / processes // member))


# -- the ensemble ----------------------------------------------------------------------------------


def build(
    dev: Device,
    points: list[dict],
    extra: Callable[[Training], dict] = lambda run: {},
    net: TableNet | None = None,
) -> Training:
    """The ensemble of a pack: every member has its own split, corruption, initial weights and
    hyperparameters, all drawn from streams of its own seed.

    net   in place of the two-layer network of the points' width, activation and batchnorm"""
    points = [complete(point) for point in points]
    common = points[0]
    if any(_common(point) != _common(common) for point in points):
        raise InputError("the members of a pack must share all settings but " + ", ".join(OWN))
    task = TASKS[common["task"]](common["p"])
    sizes = {name: common[name] for name in ("p", "width", "activation", "batchnorm")}
    net = TwoLayerNet(**sizes) if net is None else net
    params = Arena(dev, net.shapes, len(points))
    for e, point in enumerate(points):
        params.load(net.init(generator(point["seed"], "init")), e)
    grads = Arena(dev, net.shapes, len(points))
    own = {name: [point[name] for point in points] for name in OWN}
    decay = own["weight_decay"]
    optimizer = AdamW(dev, params, grads, lr=own["lr"], betas=(0.9, 0.98), weight_decay=decay)
    data, evaluation = _labelled(task, points)
    settings: dict = {name: common[name] for name in ("loss", "batch_size")}
    settings |= {"dropout": own["dropout"], "extra": extra}
    return Training(dev, net, optimizer, data, evaluation, own["seed"], **settings)


def _labelled(task: ModularTask, points: list[dict]) -> tuple[list[Labelled], Evaluation]:
    """Training data with corrupted labels, and what is measured of every member."""
    everything = task.inputs(np.arange(task.size))
    true = task.labels(everything)
    given = np.tile(true, (len(points), 1))
    train = np.zeros(given.shape, dtype=bool)
    wrong = np.zeros(given.shape, dtype=bool)
    data = []
    for e, point in enumerate(points):
        seed = point["seed"]
        numbers, _ = task.split(point["alpha"], generator(seed, "split"))
        rng = generator(seed, "corruption")
        labels, corrupted = corrupt(task, numbers, point["xi"], rng, point["rule"])
        data.append((task.inputs(numbers), labels))
        given[e, numbers] = labels
        train[e, numbers] = True
        wrong[e, numbers] = corrupted
    splits = {
        "train": (train, "given"),
        "corrupted": (wrong, "given"),
        "corrupted_true": (wrong, "true"),
        "uncorrupted": (train & ~wrong, "given"),
        "test": (~train & task.defined(everything), "true"),
    }
    return data, Evaluation(everything, {"given": given, "true": true}, splits)


# -- measurements ----------------------------------------------------------------------------------


def hidden_units(
    run: Training, e: int, weights: dict[str, np.ndarray], buffers: dict | None = None
) -> np.ndarray:
    """What the read-out sees on the whole table (B, N), on the host, for host weights of one
    network. With BatchNorm the running statistics `buffers` apply, those of member e unless
    given."""
    dev = run.dev
    arrays = weights | (buffers or run.objective.buffers.to_host(e))
    w = {name: dev.to_device(x) for name, x in arrays.items()}
    parts = []
    for shard in run.table.shards():
        _, tape = run.model.forward(dev, w, shard.inputs, EVALUATION)
        parts.append(dev.to_host(tape["hidden.post"]))
    return np.concatenate(parts)


def part_accuracy(
    run: Training, e: int, part: dict[str, np.ndarray], split: str, buffers: dict | None = None
) -> float:
    """Accuracy on a split of a part of member e's network: of its neurons, or of its spectrum. With
    BatchNorm the gain, shift and running statistics of the whole network apply to the part too."""
    mask, labels = member_splits(run, e)[split]
    weights = run.params.to_host(e) | part
    z = hidden_units(run, e, weights, buffers) @ part["W"]
    right = z.argmax(axis=1) == labels
    return right[mask].mean() if mask.any() else np.nan


def gradient_shares(run: Training) -> np.ndarray:
    """|g_c| / (|g_c| + |g_u|), shape (E,): how much of the pull on the weights comes from corrupted
    labels, where g_c and g_u are the parts of the full-batch gradient (without dropout) due to
    corrupted and to uncorrupted examples.

    nan with BatchNorm, where the parts share their statistics and a pass in training mode would
    move the running ones."""
    if run.model.batchnorm:
        return np.full(run.params.members or 1, np.nan)
    corrupted = _gradient_norms(run, "corrupted")
    uncorrupted = _gradient_norms(run, "uncorrupted")
    total = corrupted + uncorrupted
    return np.where(total > 0, corrupted / np.where(total > 0, total, 1), np.nan)


def _gradient_norms(run: Training, split: str) -> np.ndarray:
    """Norm (E,) of the gradient of the summed loss over a split; 0 where it is empty."""
    data = []
    counts = []
    for e in range(run.params.members or 1):
        mask, labels = member_splits(run, e)[split]
        chosen = np.flatnonzero(mask) if mask.any() else np.array([0])  # any: it counts 0 times
        data.append((run.evaluation.inputs[:, chosen], labels[chosen]))
        counts.append(mask.sum())
    run.objective.gradient(run.grads, run.make_batch(data))
    tensors = run.grads.to_host().values()
    squares = [(g**2).sum(axis=tuple(range(1, g.ndim))) for g in tensors]
    return np.sqrt(sum(squares)) * counts  # the gradient is a mean: back to a sum


def member_history(history: dict, e: int) -> dict[str, np.ndarray]:
    """The record of one member."""
    columns = {name: np.asarray(values) for name, values in history.items()}
    return {name: x if name == "step" else x[:, e] for name, x in columns.items()}


def member_splits(run: Training, e: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{split: (mask (B,), labels (B,))} of one member."""
    evaluation = run.evaluation
    splits = {}
    for name, (masks, which) in evaluation.splits.items():
        labels = np.broadcast_to(evaluation.labels[which], masks.shape)
        splits[name] = masks[e], labels[e]
    return splits


def outcome(history: dict[str, np.ndarray], point: dict) -> dict:
    """What became of the member with these settings: final accuracies, phase, and the steps of
    grokking and unlearning."""
    result: dict = {}
    for name, values in history.items():
        if name.endswith("_accuracy"):
            result[name] = float(values[-1])
    best = float(history["test_accuracy"].max())
    train = result["train_accuracy"]
    test = result["test_accuracy"]
    result["best_test_accuracy"] = best
    result["phase"] = phase(train, test, best, point["xi"], point["p"])
    stages = two_stages(history["step"], history["test_accuracy"], history["corrupted_accuracy"])
    result["step_grok"], result["step_unlearn"] = stages
    return result


def _with_snapshots(history: dict[str, np.ndarray], point: dict) -> dict:
    """The outcome, and the phases at earlier moments."""
    result = outcome(history, point)
    for name, share in SNAPSHOTS.items():
        until = int(np.searchsorted(history["step"], share * point["steps"], side="right"))
        earlier = {key: values[:until] for key, values in history.items()}
        result[name] = outcome(earlier, point)["phase"]
    return {name: None if _is_nan(value) else value for name, value in result.items()}


def _is_nan(value) -> bool:
    """JSON has no nan, which stands for what an empty split would have."""
    return isinstance(value, float) and np.isnan(value)


def train_pack(
    points: list[dict], device="auto", threads=None, folder=None, **options
) -> list[dict]:
    """Train a pack from scratch: one outcome per point, with snapshots of the phase at a quarter
    and a half of the steps. A pure function of its points, made for sweep(); in a folder (a Path)
    it goes on where it was interrupted. A member whose loss does not stay finite is "Diverged", its
    numbers None; the others train without it. options: further ones of get_device"""
    points = [complete(point) for point in points]
    common = points[0]
    run = build(get_device(device, common["dtype"], threads=threads, **options), points)
    try:
        fit_in_pack(run, points, folder, common["steps"], common["log_every"])
    except NonFiniteLoss as error:
        lost = error.member
        others = points[:lost] + points[lost + 1 :]
        results = train_pack(others, device, threads, folder, **options) if others else []
        known = outcome(member_history(run.history, lost), points[lost])
        diverged = dict.fromkeys([*known, *SNAPSHOTS]) | {"phase": "Diverged"}
        return [*results[:lost], diverged, *results[lost:]]
    histories = (member_history(run.history, e) for e in range(len(points)))
    return [_with_snapshots(record, point) for record, point in zip(histories, points, strict=True)]
