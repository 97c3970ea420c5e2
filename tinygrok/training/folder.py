"""The folder of a run: one process at a time works in it, and only what runs left is moved.

Its file .tinygrok is locked for the life of the process that works there, and lists the names of
what runs left. The lock of a process that was killed is gone with it."""

import os
from contextlib import suppress
from pathlib import Path

from ..disk.writer import WRITTEN
from ..engine.errors import InputError

LIST = ".tinygrok"
CLAIMED: dict[Path, int] = {}  # by this process: descriptors of the lists, open and locked


def claim(folder: Path) -> int:
    """A descriptor of the list of a folder, locked until this process ends.

    Raises InputError where another process has it."""
    if folder in CLAIMED:
        if (folder / LIST).exists():
            return CLAIMED[folder]
        os.close(CLAIMED.pop(folder))  # it was removed in between
    file = os.open(folder / LIST, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    with suppress(ImportError, OSError):  # a system, or a file system, without such locks
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            raise InputError(f"{folder}: another process is at work there") from None
    CLAIMED[folder] = file
    return file


class Folder:
    """A folder that this process works in; what earlier runs left is moved unless it goes on.

    own     names that this run writes: those that are there count as left by a run
    kept    where earlier files went, or None
    """

    def __init__(self, path: Path, own: set[str], goes_on: bool):
        path.mkdir(parents=True, exist_ok=True)
        self.path = path = path.resolve()
        self.own = own
        claim(path)
        for place in (path, path / "packs", path / "weights"):
            for part in place.glob(".*.part"):  # of killed writers
                part.unlink(missing_ok=True)
        self.listed = set((path / LIST).read_text(errors="replace").splitlines())
        self.kept: Path | None = None
        left = self._there(self.listed | own)
        if left and not goes_on:
            self.kept = self._set_aside(left)

    def _there(self, names: set[str]) -> set[str]:
        """Those that are in the folder, whatever a damaged list says."""
        return names & {path.name for path in self.path.iterdir()} - {LIST}

    def _set_aside(self, names: set[str]) -> Path:
        """Move files into earlier-1 (2, ...)."""
        number = 1
        while (self.path / f"earlier-{number}").exists():
            number += 1
        kept = self.path / f"earlier-{number}"
        kept.mkdir()
        for name in names:
            (self.path / name).rename(kept / name)
        return kept

    def note(self) -> list[str]:
        """List what runs left in the folder so far; returns it. New names are appended: a kill
        loses none of the others."""
        written = {path.name for path in WRITTEN if path.parent == self.path}
        names = self._there(self.listed | self.own | written)
        text = "".join(f"\n{name}\n" for name in sorted(names - self.listed))
        os.write(claim(self.path), text.encode())
        self.listed |= names
        return sorted(names)
