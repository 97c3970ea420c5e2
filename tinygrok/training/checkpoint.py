"""Checkpoints: one .npz file with everything that the next step depends on, without pickle.

Written to a temporary name and renamed, so that a kill at any moment leaves the previous checkpoint
whole. Every member of the archive carries a CRC, which is checked before anything is loaded.
"""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..disk.reader import open_arrays, parse_json, refused
from ..disk.writer import atomic_write
from ..engine.errors import InputError, one_line
from ..engine.params import check_shapes
from .loop import Run
from .parallel import launched
from .progress import Interrupt
from .sweep import pack_name

FORMAT = "tinygrok checkpoint 1"
# Of the weights that a run keeps at regular steps.
MOST_FILES = 1000
MOST_BYTES = 2 * 10**9


class CheckpointError(InputError):
    """A checkpoint that is missing, truncated, corrupted, or of another run."""


def save_arrays(path: str | Path, meta: dict, arrays: dict[str, np.ndarray]) -> None:
    """Arrays by name and a JSON-able dictionary, as one .npz. Rank 0 alone writes."""
    if launched()[0]:
        return
    text = json.dumps({"format": FORMAT, **meta}).encode()
    members: dict[str, Any] = {"meta": np.frombuffer(text, dtype=np.uint8), **arrays}
    with Interrupt(patient=True) as interrupt:  # zipfile would make another error of Ctrl-C
        atomic_write(Path(path), lambda file: np.savez(file, **members))
    interrupt.pass_on()


def load_arrays(path: str | Path, check: Callable | None = None) -> tuple[dict, dict]:
    """(meta, arrays) of a file by save_arrays. Raises CheckpointError with one line that says what
    is wrong.

    check   (meta, headers {name: an array of that shape and type}) -> names to read; refuses what
            is not as expected, before any array is read. None: all names
    """
    path = Path(path)
    damaged = "not a readable checkpoint, truncated or corrupted"
    with refused(path, damaged, CheckpointError), open_arrays(path) as (headers, read):
        text = headers.pop("meta", None)
        if text is None or text.dtype != np.uint8:
            raise CheckpointError(f"{path}: not a tinygrok checkpoint")
        meta = parse_json(read("meta").tobytes())
        found = meta.pop("format", None)
        if found != FORMAT:
            raise CheckpointError(f"{path}: format {one_line(found)}, this reads {FORMAT!r}")
        if not isinstance(meta.setdefault("config", {}), dict):
            raise CheckpointError(f"{path}: its configuration is no dictionary")
        names = check(meta, headers) if check else headers
        return meta, {name: read(name) for name in names}


def load_weights(path: str | Path, shapes: Callable | None = None) -> tuple[dict, dict]:
    """(configuration, weights) of a checkpoint, or of weights that save_arrays wrote alone.

    shapes   (configuration, {name: an array of that shape and type}) -> {name: shape}: what the
             file must hold, known before it is read
    Raises CheckpointError where a weight is not finite."""

    def check(meta: dict, headers: dict) -> list[str]:
        keys = [key for key in headers if key.rpartition("/")[0] in ("weight", "")]
        if shapes is not None:
            found = {key.rpartition("/")[2]: headers[key] for key in keys}
            check_shapes(found, shapes(meta["config"], found), f"{path}: ")
        return keys

    meta, arrays = load_arrays(path, check)
    _check_finite(path, arrays)
    return meta["config"], {key.rpartition("/")[2]: x for key, x in arrays.items()}


def _check_finite(path: str | Path, arrays: dict[str, np.ndarray]) -> None:
    for name, x in arrays.items():
        if not np.isfinite(x).all():
            raise CheckpointError(f"{path}: {name} is not finite")


def _seen(run: Run) -> dict:
    """The arenas that the answers of the network depend on."""
    return {"weight": run.params, "buffer": run.objective.buffers}


def _arenas(run: Run) -> dict:
    """Every arena that the next step reads."""
    optimizer = {f"optimizer.{kind}": arena for kind, arena in run.optimizer.state.items()}
    return _seen(run) | optimizer


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


def check_kept(run: Run, steps: int, every: int) -> None:
    """InputError where weights at every so many steps would be too many files, or bytes."""
    files = steps // every + 1
    size = sum(arena.flat.nbytes for arena in _seen(run).values())
    if files > MOST_FILES or files * size > MOST_BYTES:
        kept = f"weights at every {every} of {steps} steps: {files} files of {size:,} bytes"
        raise InputError(f"{kept}; at most {MOST_FILES} files and {MOST_BYTES:,} bytes")


def save_weights(folder: Path, run: Run, config: dict) -> None:
    """Weights, and buffers of BatchNorm, of the step that a run has reached, into a file of their
    own: folder/step_00000100.npz, which load_weights reads."""
    arrays = {}
    for kind, arena in _seen(run).items():
        arrays |= {f"{kind}/{name}": x for name, x in arena.to_host().items()}
    save_arrays(folder / f"step_{run.t:08}.npz", {"step": run.t, "config": config}, arrays)


def load_training(path: str | Path, run: Run, config: dict, defaults: dict | None = None) -> None:
    """Restore a run saved by save_training, bit by bit: it goes on as if it had not stopped, with
    the hyperparameters of its last step.

    defaults   of settings: a checkpoint that does not know one was made with its default

    Raises InputError for a file that is damaged or of another configuration; the run is then as
    before.

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
    arenas = _arenas(run)
    known = run.optimizer.hyperparameters()
    expected = {}
    for kind, arena in arenas.items():
        expected |= {f"{kind}/{name}": shape for name, shape in arena.shapes.items()}

    def check(meta: dict, headers: dict) -> dict:
        check_config(path, (defaults or {}) | meta["config"], config)
        state = {key: x for key, x in headers.items() if not key.startswith("history/")}
        check_shapes(state, expected, f"{path}: ")
        if any(x.dtype != run.dev.dtype for x in state.values()):
            raise CheckpointError(f"{path}: holds another dtype than {run.dev.dtype}")
        for _, values in meta.setdefault("hyperparameters", []):
            for name, value in values.items():
                if np.asarray(value, float).shape != np.shape(known[name]):
                    raise CheckpointError(f"{path}: {name} = {one_line(value)} is none")
        return headers

    meta, arrays = load_arrays(path, check)
    history = {key[8:]: x for key, x in arrays.items() if key.startswith("history/")}
    _check_history(path, meta.get("step"), history)
    if meta.get("whole"):  # else it has diverged, or is of an earlier version
        seen = [key for key in expected if key.startswith(("weight/", "buffer/"))]
        _check_finite(path, {key: arrays[key] for key in seen})
    for kind, arena in arenas.items():
        arena.load({name: arrays[f"{kind}/{name}"] for name in arena.shapes})
    run.history = {name: list(column) for name, column in history.items()}
    run.hyperparameters = meta["hyperparameters"]
    for _, values in run.hyperparameters[-1:]:
        for name, value in values.items():
            setattr(run.optimizer, name, value)
    run.t = meta["step"]
    run.whole = bool(meta.get("whole", True))


def _check_history(path: str | Path, step: Any, history: dict[str, np.ndarray]) -> None:
    """A row for every measurement, at steps in order, none after the step that was reached."""
    steps = history.get("step", np.empty(()))
    lengths = {x.shape[:1] for x in history.values()}
    if steps.ndim != 1 or len(lengths) != 1 or (steps.size and steps.dtype.kind != "i"):
        raise CheckpointError(f"{path}: its history is not a row for every measurement")
    is_step = type(step) is int and 0 <= step < 2**63
    if not is_step or np.any(np.diff(steps, prepend=0, append=step) < 0):
        raise CheckpointError(f"{path}: step {one_line(step)} is none, or not that of its history")


def check_config(
    path: str | Path, saved: dict, wanted: dict, free: tuple[str, ...] = ("steps", "recompute")
) -> None:
    """Refuse a configuration that differs, naming the setting; `free` ones may: the number of
    steps, to train on, and recomputing, which changes no bit."""
    for key in sorted(set(saved) | set(wanted)):
        before = saved.get(key)
        now = wanted.get(key)
        if before != now and key not in free:
            difference = f"was made with {key} = {one_line(before)}, this run has {key} = {now}"
            raise CheckpointError(f"{path}: {difference}")


def fit_in_pack(
    run: Run, points: list[dict], folder: Path | None, steps: int, log_every: int, **options
):
    """run.fit for a pack of a sweep: with a folder it keeps a checkpoint there while it is under
    way, and goes on from it. options: of run.fit."""
    if folder is None:
        run.fit(steps, log_every, **options)
        return
    path = (folder / pack_name(points)).with_suffix(".npz")
    config = {"points": points}
    with suppress(InputError):  # there is none
        load_training(path, run, config)
    run.fit(steps, log_every, save=lambda run: save_training(path, run, config), **options)
    path.unlink(missing_ok=True)
