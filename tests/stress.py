"""Kills, interrupts, starves and damages tiny runs of the examples, resumes and compares them.

    python tests/stress.py                  # 3 trials of each kind with each example
    python tests/stress.py 50
    python tests/stress.py 50 --seed 1000   # other trials
    python tests/stress.py --repeat killed:grok_addition:17

Every trial must end with the checkpoints and results of an undisturbed run, to the last bit, or
with a refusal in one line and exit code 2, after which the run goes on without the damaged file. A
trial is repeated by its name. One core, about half a second a trial; Linux or macOS. It waits for
the disk after every checkpoint: TMPDIR=/dev/shm (Linux) spares a slow one."""

import argparse
import functools
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from itertools import product
from pathlib import Path

import stress_runs as runs  # first: it sets up BLAS threads before NumPy loads

import numpy as np  # isort: skip
import stress_damage
from stress_runs import CASES, OUT, STATE, SWEEPS, Child, Ended, Failure, require

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
EIO, ENOSPC = 5, 28


# -- undisturbed runs ------------------------------------------------------------------------------


def words_of(example: str, base: Path, more: str = "") -> list[str]:
    flags = CASES[example].replace("IMAGES", str(base / "images"))
    return [*flags.split(), *f"--threads 1 --no-plot --out {OUT} {more}".split()]


class Undisturbed:
    """What a run of an example leaves when nothing happens to it.

    contents      of its folder
    moments       how many there are, with a checkpoint after every step
    of_files      those of them that touch files
    seconds       that it takes
    largest       bytes of its largest file
    """

    def __init__(self, example: str, base: Path):
        self.example = example
        self.base = base
        self.folder = base / example
        self.folder.mkdir(parents=True)
        moments = self.folder / "moments.json"
        words = words_of(example, base, "" if example in SWEEPS else runs.CHECKPOINTED)
        for prepare in (functools.partial(runs.count_moments, moments), runs.nothing):
            shutil.rmtree(self.folder / OUT, ignore_errors=True)
            began = time.monotonic()
            ended = Child(example, words, self.folder, prepare).wait()
            require(ended.code == 0 and not ended.err, "the undisturbed run failed", ended)
        self.seconds = time.monotonic() - began
        counted = json.loads(moments.read_text())
        self.moments = counted["all"]
        self.of_files = counted["files"]
        self.contents = runs.contents(self.folder / OUT)
        self.largest = max(len(data) for data in runs.all_bytes(self.folder / OUT).values())


# -- trials ----------------------------------------------------------------------------------------


class Trial:
    """An example in a folder of its own, and the draws that decide what happens to it."""

    def __init__(self, usual: Undisturbed, rng: np.random.Generator, folder: Path):
        self.usual = usual
        self.example = usual.example
        self.folder = folder
        self.out = folder / OUT
        self.rng = rng
        self.disturbed = 0  # processes that were killed, refused, or told of something
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    def words(self, more: str = "", checkpointed: bool = True) -> list[str]:
        """The flags; with --resume as soon as there is a state to go on from."""
        if checkpointed and self.example not in SWEEPS:
            more += f" {runs.CHECKPOINTED}"
        return words_of(self.example, self.usual.base, more)

    def resume(self) -> str:
        return "--resume" if (self.out / STATE[self.example]).exists() else ""

    def moment(self) -> int:
        """Any one, or one that touches a file."""
        if self.rng.random() < 0.5:
            return int(self.rng.choice(self.usual.of_files))
        return int(self.rng.integers(1, self.usual.moments))

    def start(self, prepare=runs.nothing, words: list[str] | None = None) -> Child:
        return Child(self.example, words or self.words(self.resume()), self.folder, prepare)

    def end(self, child: Child) -> Ended:
        """Wait for it; counts whether it felt anything."""
        ended = child.wait()
        self.disturbed += ended.code != 0 or ended.err != ""
        return runs.require_polite(ended)

    def disturb(self, prepare: Callable, words: list[str] | None = None) -> Ended:
        """A run that is disturbed from within."""
        return self.end(self.start(prepare, words))

    def finish(self, words: list[str] | None = None) -> None:
        """Go on, without a disturbance, to the end of the undisturbed run."""
        ended = self.start(words=words).wait()
        require(ended.code == 0 and not ended.err, "it does not go on", ended)
        self.compare()

    def compare(self, damaged: str = "") -> None:
        """With the undisturbed run. Of a list that was damaged, what can be read stays."""
        found = runs.contents(self.out)
        if damaged == ".tinygrok":
            found[damaged] = self.usual.contents[damaged]
        runs.require_equal(found, self.usual.contents)


def kill_now() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed(trial: Trial) -> None:
    """SIGKILL at up to three moments, resumed each time."""
    for _ in range(trial.rng.integers(1, 4)):
        trial.disturb(functools.partial(runs.at_moments, {trial.moment(): kill_now}))
    trial.finish()


def killed_from_outside(trial: Trial) -> None:
    """SIGKILL after a time, wherever that is: also while the kernel writes."""
    for _ in range(trial.rng.integers(1, 4)):
        child = trial.start()
        child.sleep(trial.rng.uniform(0, 1.1 * trial.usual.seconds))
        child.signal(signal.SIGKILL)
        trial.end(child)
    trial.finish()


def go_on_as_told(trial: Trial, ended: Ended) -> None:
    """An interrupted run prints the command that goes on, where there is a state to go on from."""
    require(ended.code in (0, 130) or -ended.code in SIGNALS, "a strange exit", ended)
    words = None
    if ended.code == 130:
        words = runs.command_to_go_on(ended)
        require(bool(words) == bool(trial.resume()), "no command to go on, or a wrong one", ended)
    trial.finish(words)


def interrupted(trial: Trial) -> None:
    """SIGINT, SIGTERM or SIGHUP at a moment; then the command that is printed."""
    number = trial.rng.choice(SIGNALS)
    checkpointed = bool(trial.rng.random() < 0.5)
    acts = {trial.moment(): runs.send(number)}
    words = trial.words(checkpointed=checkpointed)
    go_on_as_told(trial, trial.disturb(functools.partial(runs.at_moments, acts), words))


def interrupted_twice(trial: Trial) -> None:
    """Two signals, the second at any later moment, often soon."""
    first = trial.moment()
    later = int(np.exp(trial.rng.uniform(0, np.log(trial.usual.moments))))
    one, other = trial.rng.choice(SIGNALS, 2)
    acts = {first: runs.send(one), first + later: runs.send(other)}
    go_on_as_told(trial, trial.disturb(functools.partial(runs.at_moments, acts)))


def in_the_background(trial: Trial) -> None:
    """As a child of a shell's &, which ignores SIGINT: that does nothing, SIGTERM still does."""

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        runs.at_moments(acts)

    acts = {trial.moment(): runs.send(signal.SIGINT)}
    if trial.rng.random() < 0.7:
        acts[trial.moment()] = runs.send(signal.SIGTERM)
    ended = trial.disturb(prepare)
    require(len(acts) == 2 or ended.code == 0, "SIGINT is not ignored any more", ended)
    go_on_as_told(trial, ended)


def full_disk(trial: Trial) -> None:
    """No file may become longer than a limit; then there is room again."""
    size = int(trial.rng.uniform(0, 1.1 * trial.usual.largest))
    ended = trial.disturb(functools.partial(runs.small_disk, size))
    require(ended.code in (0, 1, 2), "a strange exit", ended)
    trial.finish()


def failing_disk(trial: Trial) -> None:
    """fsync, rename or mkdir fail, once or from then on."""
    names = trial.rng.choice(["fsync", "replace", "mkdir", "rename"], 2, replace=False)
    error = int(trial.rng.choice([EIO, ENOSPC]))
    calls = {str(name): int(trial.rng.integers(1, 20)) for name in names}
    once = bool(trial.rng.random() < 0.5)
    prepare = functools.partial(runs.failing_disk, calls, error, once)
    ended = trial.disturb(prepare)
    require(ended.code in (0, 1, 2), "a strange exit", ended)
    trial.finish()


def two_at_once(trial: Trial) -> None:
    """A second process in the folder of the first, which may be killed: refused, or after it."""
    seconds = trial.usual.seconds
    first = trial.start()
    first.sleep(trial.rng.uniform(0, 1.2 * seconds))
    words = trial.words(trial.resume() if trial.rng.random() < 0.5 else "")
    second = trial.start(words=words)
    if trial.rng.random() < 0.5:
        second.sleep(trial.rng.uniform(0, 0.2 * seconds))
        first.signal(signal.SIGKILL)
    for ended in (trial.end(second), trial.end(first)):
        if ended.code == 2:
            runs.require_refusal(ended)
            require("another process is at work" in ended.err, "another refusal", ended)
        else:
            require(ended.code in (0, -signal.SIGKILL), "a strange exit", ended)
    trial.finish()


def over_an_earlier_run(trial: Trial) -> None:
    """A run that starts anew in the folder of another, and is killed: nothing there is lost."""
    other = trial.words("--seed 5")
    ended = trial.start(words=other).wait()
    require(ended.code == 0, "the earlier run failed", ended)
    (trial.out / "notes.txt").write_text("my own")
    before = runs.all_bytes(trial.out)
    del before[".tinygrok"]
    anew = trial.words()
    kills = functools.partial(runs.at_moments, {trial.moment(): kill_now})
    trial.disturb(kills, anew)
    trial.start(words=anew).wait()
    there = set(runs.all_bytes(trial.out).values())
    for name, data in before.items():
        require(data in there, f"{name} of the earlier run is lost")
    (trial.out / "notes.txt").unlink()
    trial.compare()


def a_worker_dies(trial: Trial) -> None:
    """Of a sweep on worker processes one is killed, or the process that they work for."""
    words = trial.words(f"{trial.resume()} --workers 2")
    child = trial.start(words=words)
    child.sleep(trial.rng.uniform(0, 3.0))
    workers = _workers(child.pid)
    victims = workers if workers and trial.rng.random() < 0.7 else [child.pid]
    with suppress(ProcessLookupError):
        os.kill(int(trial.rng.choice(victims)), signal.SIGKILL)
        trial.disturbed += 1
    ended = child.wait()
    require(ended.code in (0, -signal.SIGKILL), "a strange exit", ended)
    require("Traceback" not in ended.err, "it says too much", ended)
    trial.finish()


def _workers(pid: int) -> list[int]:
    """The worker processes of a process (not Python's own helper)."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it may have ended
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            is_worker = b"spawn_main" in (path / "cmdline").read_bytes()
            if parent == pid and is_worker:
                found.append(int(path.name))
    return found


def damaged(trial: Trial) -> None:
    """A file of a run that was killed is damaged: refused in one line, with nothing written, or
    without effect."""
    moment = int(trial.usual.moments * trial.rng.choice([0.4, 0.7, 0.95, 2]))
    trial.start(functools.partial(runs.at_moments, {moment: kill_now})).wait()
    if not trial.resume():
        trial.start().wait()
    kinds = (".npz", ".json", ".tinygrok")
    not_read = ("run.json", "best.npz")
    files = [path for path in sorted(trial.out.rglob("*")) if path.name.endswith(kinds)]
    state = [path for path in files if path.name not in not_read]
    path = state[int(trial.rng.integers(len(state)))]
    alike = [p for p in state if p != path and (p.parent, p.suffix) == (path.parent, path.suffix)]
    how = stress_damage.damage(path, trial.rng, alike)
    before = runs.all_bytes(trial.out)
    ended = trial.end(trial.start(words=trial.words("--resume")))
    try:
        if ended.code == 0:
            require(not ended.err, "it says something", ended)
            trial.compare(path.name)
            return
        runs.require_refusal(ended)
        after = runs.all_bytes(trial.out)
        whole = [name for name in before if not name.endswith(".part")]  # of killed writers
        lost = [name for name in whole if after.get(name) != before[name]]
        late = trial.example == "autoinit"  # one checkpoint a network, each read when it is due
        require(not lost or late, f"refused, but changed: {lost}", ended)
        path.unlink()
        trial.finish()
    except Failure as failure:
        raise Failure(f"{how}: {failure}") from failure


def probed(trial: Trial) -> None:
    """A damaged checkpoint that a probe opens: refused in one line, with nothing written, or
    without effect."""
    probe, flags = runs.PROBES[trial.example]
    path = trial.folder / "checkpoint.npz"
    shutil.copy(trial.usual.folder / OUT / "checkpoint.npz", path)
    words = f"{path} {flags} --threads 1 --no-plot --out {OUT}".split()
    expected = trial.usual.base / f"{probe}.npz-results"
    if not expected.exists():
        ended = Child(probe, words, trial.folder, runs.nothing).wait()
        require(ended.code == 0 and not ended.err, "the probe of a sound file failed", ended)
        trial.out.rename(expected)
    how = stress_damage.damage(path, trial.rng)
    ended = trial.end(Child(probe, words, trial.folder, runs.nothing))
    if ended.code == 0:
        found, usual = (runs.contents(folder)["run.json"] for folder in (trial.out, expected))
        runs.require_equal(found["results"], usual["results"], f"{how}: ")
        return
    runs.require_refusal(ended)
    require(not trial.out.exists(), f"{how}: refused, but something was written", ended)


KINDS: dict[str, Callable[[Trial], None]] = {
    "killed": killed,
    "killed_from_outside": killed_from_outside,
    "interrupted": interrupted,
    "interrupted_twice": interrupted_twice,
    "in_the_background": in_the_background,
    "full_disk": full_disk,
    "failing_disk": failing_disk,
    "two_at_once": two_at_once,
    "over_an_earlier_run": over_an_earlier_run,
    "a_worker_dies": a_worker_dies,
    "damaged": damaged,
    "probed": probed,
}
POOLED = ("lcg_scaling", "phase_diagram", "in_context_phases")
POOLED += ("grok_optimizers", "width_scan", "pruning_phases")
ONLY_WITH = {"a_worker_dies": POOLED, "probed": tuple(runs.PROBES)}
NAME = re.compile(f"({'|'.join(KINDS)}):({'|'.join(CASES)}):[0-9]+|read:[^:]+:[0-9]+")
READ = "read"  # the kind of trial in which a damaged file is only read
READINGS = 40  # of these for every trial of another kind: they take a millisecond


# -- the command -----------------------------------------------------------------------------------


class Stress:
    """Runs trials in a folder, and counts them by (kind, example or file)."""

    def __init__(self, base: Path):
        self.base = base
        self.tried: Counter = Counter()
        self.disturbed: Counter = Counter()
        self.failed: Counter = Counter()
        self.undisturbed = functools.cache(lambda example: Undisturbed(example, base))
        stress_damage.write_images(base / "images")
        (base / "files").mkdir()
        self.files = stress_damage.sound_files(base / "files")

    def one(self, kind: str, what: str, seed: int) -> None:
        """One trial with an example or a file; its folder stays where it failed."""
        folder = self.base / "trials" / f"{kind}-{what}-{seed}"
        rng = np.random.default_rng([seed, zlib.crc32(f"{kind}:{what}".encode())])
        disturbed = 0
        try:
            if kind == READ:
                disturbed = stress_damage.try_reading(self.files[what], rng) == "refused"
            else:
                trial = Trial(self.undisturbed(what), rng, folder)
                KINDS[kind](trial)
                disturbed = trial.disturbed
                shutil.rmtree(folder)
        except Failure as failure:
            self.failed[kind, what] += 1
            print(f"\nFAILED {kind}:{what}:{seed}: {failure}", flush=True)
            if folder.exists():
                print(f"its folder: {folder}", flush=True)
        self.tried[kind, what] += 1
        self.disturbed[kind, what] += disturbed

    def table(self) -> str:
        """A line for each kind, and for each file that is read."""
        counts: dict[str, list[int]] = {}
        for key in self.tried:
            name = key[1] if key[0] == READ else key[0].replace("_", " ")
            row = [counter[key] for counter in (self.tried, self.disturbed, self.failed)]
            counts[name] = np.add(counts.get(name, [0, 0, 0]), row).tolist()
        counts["all"] = np.sum([[0, 0, 0], *counts.values()], axis=0).tolist()
        lines = [f"{'':<36}{'trials':>8}{'disturbed':>11}{'failed':>8}"]
        for name, (tried, disturbed, failed) in counts.items():
            lines.append(f"{name:<36}{tried:>8}{disturbed:>11}{failed:>8}")
        return "\n".join(lines)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    p = argparse.ArgumentParser(prog="stress.py", description=(__doc__ or "").partition("\n")[0])
    several = {"nargs": "+", "metavar": "NAME"}
    p.add_argument("trials", nargs="?", type=int, default=3, help="of each kind with each example")
    p.add_argument("--seed", type=int, default=0, help="of the first trial; the others follow")
    p.add_argument("--kinds", choices=[*KINDS, READ], default=[*KINDS, READ], **several)
    p.add_argument("--examples", choices=list(CASES), default=list(CASES), **several)
    p.add_argument("--repeat", metavar="KIND:NAME:SEED", help="one trial")
    args = p.parse_args(argv)
    if args.trials < 1 or args.seed < 0:
        p.error("at least one trial, and no seed below 0")
    if args.repeat and not NAME.fullmatch(args.repeat):
        p.error(f"--repeat {args.repeat}: no trial is called so")
    return args


def plan(args: argparse.Namespace, files: list[str]) -> list[tuple[str, str, int]]:
    """(kind, example or file, seed) of every trial."""
    trials = []
    for seed, kind in product(range(args.seed, args.seed + args.trials), args.kinds):
        if kind == READ:
            seeds = range(READINGS * seed, READINGS * (seed + 1))
            trials += [(kind, file, each) for file, each in product(files, seeds)]
            continue
        fitting = ONLY_WITH.get(kind, tuple(CASES))
        trials += [(kind, example, seed) for example in args.examples if example in fitting]
    return trials


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    began = time.monotonic()
    base = Path(tempfile.mkdtemp(prefix="stress-"))
    stress = Stress(base)
    trials = plan(args, list(stress.files))
    if args.repeat:
        kind, what, seed = args.repeat.split(":")
        if kind == READ and what not in stress.files:
            sys.exit(f"--repeat {args.repeat}: read files are {', '.join(stress.files)}")
        trials = [(kind, what, int(seed))]
    shown = began
    try:
        for done, trial in enumerate(trials):
            stress.one(*trial)
            if time.monotonic() - shown > 10:
                shown = time.monotonic()
                print(f"{done + 1}/{len(trials)} trials, {shown - began:.0f} s", flush=True)
    except KeyboardInterrupt:
        print(f"\n{stress.table()}\ninterrupted")
        return 130
    print(f"\n{stress.table()}\n{time.monotonic() - began:.0f} s")
    failures = stress.failed.total()
    if failures:
        print(f"{failures} failed; repeat one by its name: python tests/stress.py --repeat NAME")
        return 1
    shutil.rmtree(base)
    print("every run ended with the bits of the undisturbed one, or refused what was damaged")
    return 0


if __name__ == "__main__":
    sys.exit(main())
