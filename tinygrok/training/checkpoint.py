"""Checkpoints: one .npz file with everything that the next step depends on, without pickle.

Written to a temporary name and renamed, so that a kill at any moment leaves the previous checkpoint
whole. Every member of the archive carries a CRC, which is checked before anything is loaded.
"""

import json
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..engine.errors import InputError
from ..engine.files import atomic_write
from .loop import Run
from .parallel import launched
from .sweep import pack_name

FORMAT = "tinygrok checkpoint 1"
# What zipfile and numpy raise for files that are damaged.
UNREADABLE = (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile)


class CheckpointError(InputError):
    """A checkpoint that is missing, truncated, corrupted, or of another run."""


def save_arrays(path: str | Path, meta: dict, arrays: dict[str, np.ndarray]) -> None:
    """Arrays by name and a JSON-able dictionary, as one .npz. Rank 0 alone writes."""
    if launched()[0]:
        return
    text = json.dumps({"format": FORMAT, **meta}).encode()
    members: dict[str, Any] = {"meta": np.frombuffer(text, dtype=np.uint8), **arrays}
    atomic_write(Path(path), lambda file: np.savez(file, **members))


def load_arrays(path: str | Path) -> tuple[dict, dict[str, np.ndarray]]:
    """(meta, arrays) of a file by save_arrays. Raises CheckpointError with one line that says what
    is wrong."""
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint")
    try:
        arrays = _read(path)
    except UNREADABLE as error:
        what = f"not a readable checkpoint, truncated or corrupted ({error})"
        raise CheckpointError(f"{path}: {what}") from error
    try:
        meta = json.loads(arrays.pop("meta").tobytes().decode())
        found = meta.pop("format")
    except (KeyError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a tinygrok checkpoint") from error
    if found != FORMAT:
        raise CheckpointError(f"{path}: format {found!r}, this version reads {FORMAT!r}")
    return meta, arrays


def _read(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an archive whose checksums hold; else one of the errors UNREADABLE."""
    with zipfile.ZipFile(path) as archive:
        broken = archive.testzip()
    if broken:
        raise ValueError(f"{broken} fails its checksum")
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)


def load_weights(path: str | Path) -> tuple[dict, dict[str, np.ndarray]]:
    """(configuration, weights) of a checkpoint, or of weights that save_arrays wrote alone.

    Raises CheckpointError where a weight is not finite."""
    meta, arrays = load_arrays(path)
    weights = {}
    for key, x in arrays.items():
        kind, _, name = key.rpartition("/")
        if kind in ("weight", ""):
            if not np.isfinite(x).all():
                raise CheckpointError(f"{path}: {name} is not finite")
            weights[name] = x
    return meta.get("config", {}), weights


def _arenas(run: Run) -> dict:
    """Every arena that the next step reads."""
    optimizer = {f"optimizer.{kind}": arena for kind, arena in run.optimizer.state.items()}
    return {"weight": run.params, "buffer": run.objective.buffers, **optimizer}


def save_training(path: str | Path, run: Run, config: dict) -> None:
    """Weights, buffers, optimiser state, history, step and configuration of a run, into a file.

    >>> import tempfile, tinygrok as tg
    >>> run = tg.Training.on_task(tg.TwoLayerNet(p=5, width=10), tg.addition(5))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tg.save_training(f"{folder}/run.npz", run, {"p": 5})
    ...     meta, arrays = load_arrays(f"{folder}/run.npz")
    >>> meta["step"], meta["config"], arrays["weight/U"].shape
    (0, {'p': 5}, (2, 5, 10))
    """
    arrays = {f"history/{name}": np.array(column) for name, column in run.history.items()}
    for kind, arena in _arenas(run).items():
        arrays |= {f"{kind}/{name}": x for name, x in arena.to_host().items()}
    meta = {"step": run.t, "whole": run.whole, "config": config}
    meta["hyperparameters"] = run.note_hyperparameters()
    save_arrays(path, meta, arrays)


def load_training(path: str | Path, run: Run, config: dict, defaults: dict | None = None) -> None:
    """Restore a run saved by save_training, bit by bit: it goes on as if it had not stopped, with
    the hyperparameters of its last step.

    defaults   of settings: a checkpoint that does not know one was made with its default

    Raises CheckpointError for a file that is damaged or of another configuration.

    >>> import tempfile, tinygrok as tg
    >>> first, second = (
    ...     tg.Training.on_task(tg.TwoLayerNet(p=5, width=10), tg.addition(5)) for _ in range(2)
    ... )
    >>> history = first.fit(steps=3)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tg.save_training(f"{folder}/run.npz", first, {"p": 5})
    ...     tg.load_training(f"{folder}/run.npz", second, {"p": 5})
    >>> second.t, bool((first.params["U"] == second.params["U"]).all())
    (3, True)
    """
    meta, arrays = load_arrays(path)
    groups: dict[str, dict] = {}
    for key, x in arrays.items():
        kind, _, name = key.partition("/")
        groups.setdefault(kind, {})[name] = x
    try:
        check_config(path, (defaults or {}) | meta["config"], config)
        step = meta["step"]
        history = groups["history"]
        for kind, arena in _arenas(run).items():
            saved = groups[kind] if arena.shapes else {}
            if any(x.dtype != run.dev.dtype for x in saved.values()):
                raise CheckpointError(f"{path}: holds another dtype than {run.dev.dtype}")
            arena.load(saved)
    except KeyError as error:
        raise CheckpointError(f"{path}: incomplete, {error} is missing") from error
    run.history = {name: list(column) for name, column in history.items()}
    run.hyperparameters = meta.get("hyperparameters", [])
    for _, values in run.hyperparameters[-1:]:
        for name, value in values.items():
            setattr(run.optimizer, name, value)
    run.t = step
    run.whole = meta.get("whole", True)


def check_config(
    path: str | Path, saved: dict, wanted: dict, free: tuple[str, ...] = ("steps", "recompute")
) -> None:
    """Refuse a configuration that differs, naming the setting; `free` ones may: the number of
    steps, to train on, and recomputing, which changes no bit."""
    for key in sorted(set(saved) | set(wanted)):
        before = saved.get(key)
        now = wanted.get(key)
        if before != now and key not in free:
            difference = f"was made with {key} = {before}, this run has {key} = {now}"
            raise CheckpointError(f"{path}: {difference}")


def fit_in_pack(run: Run, points: list[dict], folder: Path | None, steps: int, log_every: int):
    """run.fit for a pack of a sweep: with a folder it keeps a checkpoint there while it is under
    way, and goes on from it."""
    if folder is None:
        run.fit(steps, log_every)
        return
    path = (folder / pack_name(points)).with_suffix(".npz")
    config = {"points": points}
    with suppress(CheckpointError):  # there is none
        load_training(path, run, config)
    run.fit(steps, log_every, save=lambda run: save_training(path, run, config))
    path.unlink(missing_ok=True)
