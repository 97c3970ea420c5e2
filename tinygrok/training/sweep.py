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
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, ProcessPoolExecutor, wait
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


def _work(run: Callable, pack: Sequence[dict], path: Path) -> list[dict]:
    """In a worker: run a pack unless its file is there, and write the file before reporting."""
    results = _read(path, pack)
    if results is None:
        results = run(pack)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        temporary.write_text(json.dumps({"points": list(pack), "results": results}))
        os.replace(temporary, path)
    return results


class _Sweep:
    """The packs of a sweep and what came of them so far."""

    def __init__(self, packs: Sequence[Sequence[dict]], run: Callable, out: Path, on_done):
        self.packs = packs
        self.out = out
        self.on_done = on_done
        self.failed: list[str] = []
        self.results: list[list[dict] | None] = []
        self.jobs = []
        for pack in packs:
            path = out / pack_name(pack)
            self.results.append(_read(path, pack))
            self.jobs.append(functools.partial(_work, run, pack, path))
        self.done = len(packs) - len(self.unfinished())
        on_done(self.done, len(packs))

    def unfinished(self) -> list[int]:
        return [i for i, found in enumerate(self.results) if found is None]

    def finish(self, i: int, results: list[dict]) -> None:
        self.results[i] = results
        self.done += 1
        self.on_done(self.done, len(self.packs))

    def attempt(self, i: int, call: Callable[[], list[dict]]) -> None:
        """Finish pack i by a call, or note its error."""
        try:
            self.finish(i, call())
        except (BrokenExecutor, InputError):
            raise
        except Exception as error:
            first = self.packs[i][0]
            what = f"{type(error).__name__}: {error}"
            self.failed.append(f"the pack that begins with {first} failed: {what}")

    def on_pool(self, pool: Executor) -> None:
        """Run what is unfinished on an executor; BrokenExecutor when a worker dies."""
        pending = {pool.submit(self.jobs[i]): i for i in self.unfinished()}
        while pending:
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                self.attempt(pending.pop(future), future.result)

    def on_executor(self, executor: Callable[[], Executor] | Executor) -> None:
        """Run what is unfinished on an executor, or on pools made anew while they break."""
        anew = not isinstance(executor, Executor)
        tries = 0
        while self.unfinished():
            before = self.done
            pool = executor if isinstance(executor, Executor) else executor()
            try:
                self.on_pool(pool)
                return
            except BrokenExecutor as error:  # a worker died, and with it the pool
                self.collect()
                tries = 1 if self.done > before else tries + 1
                if not anew or tries >= TRIES:
                    finished = f"{self.done} of {len(self.packs)} packs are finished in {self.out}"
                    raise SweepError(f"workers died ({error}); {finished}") from error
            finally:
                if anew:
                    pool.shutdown(wait=False, cancel_futures=True)

    def collect(self) -> None:
        """Take up what dying workers had finished and could not report."""
        for i in self.unfinished():
            found = _read(self.out / pack_name(self.packs[i]), self.packs[i])
            if found is not None:
                self.finish(i, found)


def sweep(
    packs: Sequence[Sequence[dict]],
    run: Callable[[Sequence[dict]], list[dict]],
    out: str | Path,
    executor: Callable[[], Executor] | Executor | None = None,
    on_done: Callable[[int, int], None] = lambda done, total: None,
) -> list[list[dict]]:
    """Results of run(pack) for every pack, in order; one file a pack in the folder out.

    packs     lists of points; a point is a dictionary that JSON can hold
    run       pack -> one result (a JSON-able dictionary) per point; picklable where an executor is
              used
    executor  None: this process. An Executor: ProcessPoolExecutor, mpi4py.futures.MPIPoolExecutor,
              dask.distributed.Client(...).get_executor(). A function that makes one: then a pool
              broken by a dying worker is made anew, and only unfinished packs go to it.
    on_done   called with (packs finished, packs in all), also for those found finished

    Raises SweepError when a pack raised, after the others have finished (InputError passes at
    once), or when workers kept dying; what is finished stays on disk.

    >>> import tempfile
    >>> packs = [[{"x": 1}, {"x": 2}], [{"x": 3}]]
    >>> with tempfile.TemporaryDirectory() as out:
    ...     sweep(packs, lambda pack: [{"square": point["x"] ** 2} for point in pack], out)
    [[{'square': 1}, {'square': 4}], [{'square': 9}]]
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    for leftover in out.glob(".*.json.*"):  # of workers that were killed while writing
        leftover.unlink(missing_ok=True)
    work = _Sweep(packs, run, out, on_done)
    if executor is not None:
        work.on_executor(executor)
    else:
        for i in work.unfinished():
            work.attempt(i, work.jobs[i])
    if work.failed:
        raise SweepError("; ".join(work.failed))
    return [results for results in work.results if results is not None]


def exit_with_parent() -> None:
    """Initializer of worker processes: end when the driver is gone, however it went. Without it the
    workers of a killed driver finish their queue and then sleep for ever."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch():
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def process_pools(workers: int) -> Callable[[], Executor]:
    """A maker of pools of worker processes, which end with this process."""
    spawn = multiprocessing.get_context("spawn")
    return lambda: ProcessPoolExecutor(workers, spawn, exit_with_parent)
