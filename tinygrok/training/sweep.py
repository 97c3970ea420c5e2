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
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Executor, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from ..disk.reader import SMALL, open_file
from ..disk.writer import atomic_write
from ..engine.errors import InputError

TRIES = 5  # broken pools in a row, with no pack finished in between, before the sweep gives up
NO_WORKER = "no worker came up; a script that starts some needs `if __name__ == '__main__':`"


class SweepError(RuntimeError):
    """A pack failed, or its workers kept dying; the message names it."""


def _plain(x: Any, nan: bool = True) -> Any:
    """x as JSON gives it back: arrays and tuples as lists, NumPy's numbers as Python's, nan and
    infinities as None (unless nan: ValueError). AttributeError, TypeError for what it cannot hold.
    """
    text = json.dumps(x, default=lambda array: array.tolist(), allow_nan=nan)
    return json.loads(text, parse_constant=lambda name: None)


def pack_name(pack: Sequence[dict]) -> str:
    """A file name from the content of a pack: the same points give the same name in every run."""
    return _checksum(pack)[:20] + ".json"


def _checksum(x: Any) -> str:
    return hashlib.sha256(json.dumps(x, sort_keys=True).encode()).hexdigest()


def _read(path: Path, pack: Sequence[dict]) -> list[dict] | None:
    """The results in a pack's file; None where there is no whole and matching file."""
    try:
        with open_file(path) as file:
            stored = json.loads(file.read(SMALL))
        results = stored["results"]
        # Files of earlier versions have no checksum.
        known = stored.keys() == {"points", "results"} or stored["sha256"] == _checksum(results)
        return results if known and stored["points"] == pack and len(results) == len(pack) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _work(run: Callable, pack: Sequence[dict], path: Path) -> list[dict]:
    """In a worker: run a pack unless its file is there, and write the file before reporting."""
    results = _read(path, pack)
    if results is None:
        results = _plain(run(pack))
        if not isinstance(results, list) or len(results) != len(pack):
            raise ValueError(f"it must give a list of {len(pack)} results, one a point")
        stored = {"points": pack, "results": results, "sha256": _checksum(results)}
        text = json.dumps(stored).encode()
        if len(text) > SMALL:
            raise ValueError(f"its results take {len(text)} bytes, more than {SMALL}")
        atomic_write(path, lambda file: file.write(text))
    return results


class _Sweep:
    """The packs of a sweep and what came of them so far."""

    def __init__(self, packs: list[list[dict]], run: Callable, out: Path, on_done, patience: float):
        self.packs = packs
        self.out = out
        self.on_done = on_done
        self.patience = patience
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
        except (BrokenExecutor, CancelledError, InputError):
            raise
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            self.failed.append(f"{self.name(i)} failed: {what}")

    def name(self, i: int) -> str:
        return f"the pack that begins with {self.packs[i][0]}"

    def gave_up(self, why: str) -> SweepError:
        finished = f"{self.done} of {len(self.packs)} packs are finished in {self.out}"
        return SweepError(f"{why}; {finished}")

    def on_pool(self, pool: Executor) -> None:
        """Run what is unfinished on an executor; BrokenExecutor when a worker dies."""
        pending = {pool.submit(self.jobs[i]): i for i in self.unfinished()}
        quiet = 0.0  # seconds without a finished pack
        while pending:
            pause = max(quiet, self.patience / 512)  # the first line comes soon, later ones rarely
            done = wait(pending, pause, "FIRST_COMPLETED").done
            for future in done:
                self.attempt(pending.pop(future), future.result)
            quiet = 0.0 if done else quiet + pause
            if quiet:
                self.be_patient(pool, sorted(pending.values()), quiet)

    def be_patient(self, pool: Executor, pending: list[int], quiet: float) -> None:
        """Say what is waited for; when patience is over, end the workers and raise SweepError."""
        waited = f"no pack was finished for {quiet:.0f} s"
        if quiet < self.patience:
            first = f"{len(pending)} are waited for, first {self.name(pending[0])}"
            print(f"\n{waited}; {first}", file=sys.stderr, flush=True)
            return
        kill_workers(pool)
        self.collect()
        raise self.gave_up(waited)

    def on_executor(self, executor: Callable[[], Executor] | Executor) -> None:
        """Run what is unfinished on an executor, or on pools made anew while they break."""
        anew = not isinstance(executor, Executor)
        tries = 0
        while self.unfinished():
            before = self.done
            pool = executor if isinstance(executor, Executor) else executor()
            started = None
            idle = False
            try:
                started = pool.submit(os.getpid)  # a worker that comes up has done this
                self.on_pool(pool)
                idle = True
                return
            except (BrokenExecutor, CancelledError) as error:  # a worker, or what sends them, died
                idle = True
                self.collect()
                tries = 1 if self.done > before else tries + 1
                broken = isinstance(error, BrokenExecutor)
                none_came_up = broken and (started is None or started.exception())
                why = f"workers, or their scheduler, died ({error!r})"
                # One may have been killed on its way.
                if not anew or tries >= (2 if none_came_up else TRIES):
                    raise self.gave_up(NO_WORKER if none_came_up else why) from error
            finally:
                if anew:
                    # Waited for, it gives back its semaphores, and Python 3.11 does not leave with
                    # a traceback; threads that are at work would take too long.
                    pool.shutdown(wait=idle or kill_workers(pool), cancel_futures=True)

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
    patience: float = 360_000.0,
) -> list[list[dict]]:
    """Results of run(pack) for every pack, in order; one file a pack in the folder out.

    packs     lists of points; a point is a dictionary that JSON can hold, arrays as lists
    run       pack -> one result (a dictionary) per point, of which is kept what JSON can hold: nan
              is None; picklable where an executor is used
    executor  None: this process. An Executor: ProcessPoolExecutor, mpi4py.futures.MPIPoolExecutor,
              dask.distributed.Client(...).get_executor(). A function that makes one: then a pool
              broken by a dying worker is made anew, and only unfinished packs go to it.
    on_done   called with (packs finished, packs in all), also for those found finished
    patience  seconds in which an executor finishes no pack before it is given up (100 hours); lines
              say what is waited for, the first after 1/512 of it (12 minutes)

    Raises InputError, before anything runs, for a point that JSON cannot hold. Raises SweepError
    when a pack raised, after the others have finished (InputError passes at once), when workers
    kept dying, or patience was over; what is finished stays on disk.

    >>> import tempfile
    >>> packs = [[{"x": 1}, {"x": 2}], [{"x": 3}]]
    >>> with tempfile.TemporaryDirectory() as out:
    ...     sweep(packs, lambda pack: [{"square": point["x"] ** 2} for point in pack], out)
    [[{'square': 1}, {'square': 4}], [{'square': 9}]]
    """
    try:
        plain = [_plain(list(pack), nan=False) for pack in packs]
    except (AttributeError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"a point that JSON cannot hold: {error}") from error
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    for leftover in out.glob(".*.json.*"):  # of workers that were killed while writing
        leftover.unlink(missing_ok=True)
    work = _Sweep(plain, run, out, on_done, patience)
    if executor is not None:
        work.on_executor(executor)
    else:
        for i in work.unfinished():
            work.attempt(i, work.jobs[i])
    if work.failed:
        raise SweepError("; ".join(work.failed))
    return [results for results in work.results if results is not None]


def kill_workers(pool: Executor) -> bool:
    """Kill the processes of a pool, for which this one would wait before it ends; whether there
    were any."""
    workers = list((getattr(pool, "_processes", None) or {}).values())
    for worker in workers:
        worker.kill()
    return bool(workers)


def exit_with_parent() -> None:
    """Initializer of worker processes: end when the driver is gone, however it went, and leave
    Ctrl-C to it. Without it the workers of a killed driver finish their queue and then sleep for
    ever."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch():
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def process_pools(workers: int) -> Callable[[], Executor]:
    """A maker of pools of worker processes, which end with this process."""
    spawn = multiprocessing.get_context("spawn")
    return lambda: ProcessPoolExecutor(workers, spawn, exit_with_parent)
