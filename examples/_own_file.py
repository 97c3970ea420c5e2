"""A user's own Python file: read and run, in a process with a time limit, every error in a line."""

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from tinygrok.engine.errors import InputError

STUCK = 5.0  # seconds after the limit for a process that cannot even say where it is


def load(path: Path) -> dict:
    """The names that a file defines: it is run as it is."""
    if path.suffix != ".py" and not os.path.isdir(path):
        raise InputError(f"--file {path}: that is not the name of a Python file, NAME.py")
    try:
        code = compile(path.read_bytes(), str(path), "exec")
    except OSError as error:
        raise InputError(f"--file {path}: {error.strerror}") from error
    except SyntaxError as error:
        line = f", line {error.lineno}" if error.lineno else ""
        raise InputError(f"{path}{line}: {error.msg}") from error
    except (ValueError, RecursionError, MemoryError) as error:  # NUL bytes; too deeply nested
        raise InputError(_described(path, error)) from error
    names = {"__name__": path.stem, "__file__": str(path)}
    with refusing(path):
        exec(code, names)
    return names


@contextmanager
def refusing(path: Path, title: str = "") -> Iterator[None]:
    """An InputError of one line for whatever the user's code raises, in a case of that title."""
    where = f", in the case {title!r}" if title else ""
    try:
        with np.errstate(all="ignore"):
            yield
    except InputError as error:
        raise InputError(f"{path}: {error}{where}") from error
    except BaseException as error:  # SystemExit too
        raise InputError(f"{_described(path, error)}{where}") from error


def _described(path: Path, error: BaseException) -> str:
    """One line: the last line of the file that was at work, and the error."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    line = f", line {lines[-1]}" if lines else ""
    text = " ".join(str(error).split())
    return f"{path}{line}: {type(error).__name__}: {text}"


# -- the process -----------------------------------------------------------------------------------


def in_process(path: Path, seconds: float, work: Callable, *arguments):
    """work(*arguments), which runs the user's file, in a process of its own.

    InputError for those of work, after `seconds`, and where the file ends the process. Ctrl-C ends
    the process, whatever the file does about it.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    given = (sender, path, seconds, work, arguments)
    process = context.Process(target=_process, args=given, daemon=True)
    # Ctrl-C is for this process, from the first moment of the other one, which inherits that.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    process.start()
    signal.signal(signal.SIGINT, handler)
    sender.close()  # the process has the only other one: its end is the end of the pipe
    try:
        receiver.recv()  # it has started
        if not receiver.poll(seconds + STUCK):
            raise InputError(f"{path} did not return in {seconds:g} s")
        result = receiver.recv()
    except EOFError:
        process.join()
        raise InputError(f"{path} ended Python, with exit code {process.exitcode}") from None
    finally:
        process.kill()
        process.join()
    if isinstance(result, Exception):
        raise result
    return result


def _process(sender, path: Path, seconds: float, work: Callable, arguments: tuple) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where it is not inherited
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=True)  # what it prints is seen if it is stopped
    main = threading.get_ident()

    def late() -> None:
        place = _place(path, sys._current_frames()[main])
        try:
            sender.send(InputError(f"{path}{place} did not return in {seconds:g} s"))
        finally:
            os._exit(1)  # also where nobody is left to read it

    timer = threading.Timer(seconds, late)
    timer.daemon = True
    sender.send("started")
    timer.start()
    try:
        result = work(*arguments)
    except (InputError, BrokenPipeError) as error:
        result = error
    timer.cancel()
    sys.stdout.flush()
    sender.send(result)


def _place(path: Path, frame) -> str:
    """The line of the file that is at work, and its function."""
    for at, line in traceback.walk_stack(frame):
        if at.f_code.co_filename == str(path):
            return f", line {line}: {at.f_code.co_name}"
    return ""
