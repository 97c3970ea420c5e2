"""Busy neighbours for benchmark.py: processes that spin on matrix products of their own.

    python examples/_benchmark_busy.py PARENT    # spins until PARENT is no longer its parent

That is how a machine looks that is shared with others. Each has one thread and the niceness of the
process that starts it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tinygrok.engine.device import BLAS_VARIABLES
from tinygrok.engine.errors import InputError

SIZE = 500  # rows and columns of the products: float32 matrices that do not fit into a small cache
SPINNING = "spinning"


def spin(parent: int) -> None:
    """Multiply matrices for as long as this process is a child of `parent`, however that ends."""
    import numpy as np

    a = np.full((SIZE, SIZE), 0.5, dtype=np.float32)
    out = np.empty_like(a)
    print(SPINNING, flush=True)
    while os.getppid() == parent:
        np.matmul(a, a, out=out)


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Inside, `count` processes are busy; they end with the block, also after an error or Ctrl-C.

    One that this process cannot end, because it was killed itself, ends on its own: see spin.
    Raises InputError where one does not start, or has ended before the block was done."""
    command = [sys.executable, __file__, str(os.getpid())]
    one_thread = os.environ | dict.fromkeys(BLAS_VARIABLES, "1")
    # Ctrl-C in a terminal reaches them too: their traceback would be noise.
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    processes = []
    try:
        for _ in range(count):
            processes.append(subprocess.Popen(command, env=one_thread, **pipes))
        for process in processes:
            if process.stdout.readline().strip() != SPINNING:
                raise InputError(f"--busy {count}: a busy process did not start")
        yield
        if any(process.poll() is not None for process in processes):
            raise InputError(f"--busy {count}: a busy process ended before the timing did")
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()
            process.stdout.close()


if __name__ == "__main__":
    spin(int(sys.argv[1]))
