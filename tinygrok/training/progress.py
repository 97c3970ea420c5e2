"""While a run trains: Ctrl-C that waits for the step at hand, and a line of progress."""

import importlib.util
import signal
import sys
import threading
import time
from typing import Any

# Ctrl-C, a polite kill, a terminal that is closed.
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
SIGNALS = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]


class Interrupt:
    """Inside, the first of the SIGNALS only sets `asked`; a second one raises KeyboardInterrupt,
    unless this is patient.

    Signals reach the main thread alone: elsewhere this does nothing. Those that are ignored, or
    end the process, still do."""

    def __init__(self, patient: bool = False):
        self.patient = patient
        self.asked = 0
        self._before: dict[int, Any] = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for s in SIGNALS:
                if callable(signal.getsignal(s)):
                    self._before[s] = signal.signal(s, self._handle)
        return self

    def __exit__(self, *_):
        for s, handler in self._before.items():
            signal.signal(s, handler)

    def __call__(self) -> bool:
        return bool(self.asked)

    def _handle(self, signum, frame):
        if self.asked and not self.patient:
            raise KeyboardInterrupt
        self.asked = signum

    def pass_on(self) -> None:
        """Hand a signal that came to whoever handled it before."""
        if self.asked:
            signum = self.asked
            self.asked = 0
            self._before[signum](signum, None)


class Progress:
    """A progress bar by tqdm where that is installed and the output is a terminal, else a line
    every few seconds."""

    def __init__(self, total: int, start: int = 0, every: float = 2.0, unit: str = "step"):
        self.total = total
        self.start = start
        self.every = every
        self.unit = unit
        self.began = self.last = time.monotonic()
        self.bar = None
        if sys.stderr is not None and sys.stderr.isatty() and importlib.util.find_spec("tqdm"):
            from tqdm import tqdm

            self.bar = tqdm(total=total, initial=start, unit=unit, dynamic_ncols=True)

    def __call__(self, step: int, text: str) -> None:
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(step - self.bar.n)
            return
        now = time.monotonic()
        if step < self.total and now - self.last < self.every:
            return
        self.last = now
        rate = (step - self.start) / max(now - self.began, 1e-9)
        left = ""
        if rate and step < self.total:
            left = f", {(self.total - step) / rate:.0f} s left"
        count = f"{step:>{len(str(self.total))}}/{self.total}"
        print(f"{self.unit} {count}  {text}  {rate:.3g} {self.unit}s/s{left}", flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
