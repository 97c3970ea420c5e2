"""Sweeps: many packs of points, in this process or on any executor, resumable and safe against
dying workers.

Every finished pack is one file, written by the worker that finished it under a temporary name and
renamed. A sweep that starts again lists the files and runs what is missing; nothing that was
finished is lost or run twice. Workers on other machines must see the same folder (a shared file
system), as usual on a cluster."""

import functools
import hashlib
import json
import multiprocessing
import os
import threading
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    ProcessPoolExecutor,
    wait,
)
from pathlib import Path

from ..engine.errors import InputError

TRIES = 5  # broken pools in a row, with no pack finished in between, before the sweep gives up


class SweepError(RuntimeError):
    """A pack failed, or its workers kept dying; the message names it."""


def pack_name(pack: Sequence[dict]) -> str:
    """A file name from the content of a pack: the same points give the same name in every run."""
    text = json.dumps(list(pack), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:20] + ".json"


def _read(path: Path, pack: Sequence[dict]) -> list[dict] | None:
    """The results in a pack's file; None where there is no whole and matching file."""
    try:
        stored = json.loads(path.read_text())
        return stored["results"] if stored["points"] == list(pack) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _work(run: Callable, pack: Sequence[dict], path: str) -> list[dict]:
    """In a worker: run a pack unless its file is there, and write the file before reporting."""
    target = Path(path)
    results = _read(target, pack)
    if results is None:
        results = run(pack)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        temporary.write_text(json.dumps({"points": list(pack), "results": results}))
        os.replace(temporary, target)
    return results


def sweep(
    packs: Sequence[Sequence[dict]],
    run: Callable[[Sequence[dict]], list[dict]],
    out: Path,
    executor: Callable[[], Executor] | Executor | None = None,
    on_done: Callable[[int, int], None] = lambda done, total: None,
) -> list[list[dict]]:
    """Results of run(pack) for every pack, in order; one file a pack in the folder out.

    packs     lists of points; a point is a dictionary that JSON can hold
    run       pack -> one result (a JSON-able dictionary) per point; picklable where an executor is used
    executor  None: this process. An Executor: ProcessPoolExecutor, dask.distributed.Client(...).get_executor(),
              mpi4py.futures.MPIPoolExecutor. A function that makes one: then a pool broken by a
              dying worker is made anew, and only unfinished packs go to it.
    on_done   called with (packs finished, packs in all), also for those found finished

    Raises SweepError when a pack raised, after the others have finished (InputError passes at
    once), or when workers kept dying; what is finished stays on disk.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    for leftover in out.glob(".*.json.*"):  # of workers that were killed while writing
        leftover.unlink(missing_ok=True)
    paths = [out / pack_name(pack) for pack in packs]
    results = [_read(path, pack) for path, pack in zip(paths, packs, strict=True)]
    todo = [i for i, found in enumerate(results) if found is None]
    done = len(packs) - len(todo)
    on_done(done, len(packs))

    def finish(i: int, value: list[dict]) -> None:
        nonlocal done
        results[i] = value
        done += 1
        on_done(done, len(packs))

    failed: list[str] = []

    def attempt(i: int, call: Callable[[], list[dict]]) -> None:
        try:
            finish(i, call())
        except (BrokenExecutor, InputError):
            raise
        except Exception as error:
            failed.append(
                f"the pack that begins with {packs[i][0]} failed: {type(error).__name__}: {error}"
            )

    if executor is None:
        for i in todo:
            attempt(i, lambda i=i: _work(run, packs[i], str(paths[i])))
        todo = []
    tries = 0
    while todo:
        before = done
        pool = executor() if callable(executor) and not isinstance(executor, Executor) else executor
        try:
            pending = {pool.submit(_work, run, packs[i], str(paths[i])): i for i in todo}
            while pending:
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    attempt(pending.pop(future), future.result)
            todo = []
        except BrokenExecutor as error:  # a worker died, and with it the pool
            for i in todo:  # finished, and perhaps unheard of
                if results[i] is None and (found := _read(paths[i], packs[i])) is not None:
                    finish(i, found)
            todo = [i for i in todo if results[i] is None]
            tries = 1 if done > before else tries + 1
            if pool is executor or tries >= TRIES:
                raise SweepError(
                    f"workers died ({error}); {done} of {len(packs)} packs are finished in {out}"
                ) from error
        finally:
            if pool is not executor:
                pool.shutdown(wait=False, cancel_futures=True)
    if failed:
        raise SweepError("; ".join(failed))
    return results


def exit_with_parent() -> None:
    """Initializer of worker processes: end when the driver is gone, however it went. Without it the
    workers of a killed driver finish their queue and then sleep for ever."""
    parent = multiprocessing.parent_process()

    def watch():
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def process_pools(workers: int) -> Callable[[], Executor]:
    """A maker of pools of worker processes, which end with this process."""
    spawn = multiprocessing.get_context("spawn")
    return functools.partial(
        ProcessPoolExecutor, workers, mp_context=spawn, initializer=exit_with_parent
    )
