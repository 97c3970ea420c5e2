"""Kernels compiled for this processor: the CUDA body of a Fused as a loop in C++, for the CPU.

`get_device("cpu", kernels="compiled")` takes them: one pass over memory where the NumPy body makes
one for every operation. The system's C++ compiler makes them at first use, on compiled.hpp; after
that they come from a cache folder. An elementwise body computes every element by the same machine
code: its bits do not depend on where it stands. A row is computed as on a GPU by the threads of a
block, side by side. NumPy goes on with what they do not take: elementwise bodies that need an index
or an integer, rows with gaps, whole outputs with gaps, complex numbers.

No flag changes what NaN, infinity or -0 mean: sums keep their order, no product is fused with a
sum, and -fno-math-errno leaves out errno alone. glibc's vector functions (exp, log, tanh, erf) are
right to 4 ulp. Bits depend on the processor and the compiler."""

import ctypes
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from .errors import one_line
from .kernels import KERNELS, Fused, thread_each
from .row_kernels import block_a_row, block_in_arrays

NAMES = (os.environ.get("CXX"), "c++", "g++", "clang++")
COMPILER = next((name for name in NAMES if name and shutil.which(name)), None)
FLAGS = "-std=c++14 -O3 -march=native -fopenmp-simd -fno-math-errno -ffp-contract=off -fPIC -shared"


def library(source: str) -> ctypes.CDLL:
    """C++ as a shared library, compiled unless it is in the cache folder.

    Its name there is a hash of the source, the flags, and of what the compiler says of itself and
    of this processor; its last 32 bytes are a checksum. It is renamed when done: other processes
    see all of it or nothing. Raises OSError, or CalledProcessError with what the compiler says."""
    if COMPILER is None:
        raise FileNotFoundError("there is no C++ compiler (CXX, c++, g++, clang++)")
    command = [COMPILER, *FLAGS.split(), "-x", "c++", "-"]
    run = partial(subprocess.run, capture_output=True, text=True, check=True)
    known = run([*command, "-dM", "-E"], input="").stdout
    key = sha256("\n".join((*command, known, source)).encode()).hexdigest()
    folder = cache_folder()
    path = folder / f"{key[:24]}.so"
    content = path.read_bytes() if path.exists() else b""
    if content[-32:] != sha256(content[:-32]).digest():
        with TemporaryDirectory(dir=folder) as work:
            made = Path(work, "made.so")
            run([*command, "-o", str(made)], input=source)
            content = made.read_bytes()
            made.write_bytes(content + sha256(content).digest())
            made.replace(path)
    return ctypes.CDLL(str(path))


def cache_folder() -> Path:
    """TINYGROK_CACHE, or tinygrok in XDG_CACHE_HOME or ~/.cache; made where it is not there.

    What lies in it is run: raises PermissionError where others could write there."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():  # to be ignored, says the XDG specification
        base = Path.home() / ".cache"
    folder = Path(os.environ.get("TINYGROK_CACHE") or base / "tinygrok").resolve()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if os.name == "posix" and (found.st_uid != os.getuid() or found.st_mode & 0o022):
        raise PermissionError(f"others can write to {folder}, from which code would be run")
    return folder


def parameters(text: str) -> list[tuple[bool, str, str]]:
    """[(raw?, type, name)] of a CuPy parameter list."""
    return [(r != "", t, p) for r, t, p in re.findall(r"(raw )?(\w+) (\w+)", text)]


FORMS = {thread_each: "ELEMENTS", block_a_row: "ROWS", block_in_arrays: "ARRAYS"}  # by launch


class Loop:
    """A kernel as a loop over arrays, of float32 or of float64.

    form       the loop of compiled.hpp: "ELEMENTS", "ROWS", or "ARRAYS" (rows that read others)
    listed     its parameters, without N, the size of a row
    inputs     how many of them are inputs
    taken      whether it can be one: an elementwise body has numbers of type T only
    function   of the library; load() sets it
    """

    function: Callable[..., int]

    def __init__(self, kernel: Fused):
        self.kernel = kernel
        self.form = FORMS[kernel.launch]
        by_row = self.form != "ELEMENTS"
        self.listed = parameters(f"{kernel.inputs}, {kernel.outputs}")[by_row:]
        self.inputs = len(self.listed) - len(parameters(kernel.outputs))
        self.taken = by_row or all(not raw and kind == "T" for raw, kind, _ in self.listed)

    def cpp(self) -> str:
        """Its source on compiled.hpp: parameters are elements, or rows or the whole of arrays."""
        body = self.kernel.cuda
        for j, (raw, kind, parameter) in enumerate(self.listed):
            read = f"{self.form}_RAW" if raw else f"{self.form}_PLAIN"
            body = f"{read}({kind}, {parameter}, {j}) {body}"
        loop = f"LOOP({self.form}, {self.kernel.name}, {self.inputs}, {len(self.listed)})"
        return f"BODY({self.kernel.name}) {{ EACH_OF_{self.form} {{ {body} }} }}\n{loop}"

    def __call__(self, *args) -> bool:
        """Run it; False, and nothing is done, where it does not take the arguments."""
        dtype = args[-1].dtype
        order = "C" if self.form == "ARRAYS" else "K"  # a copy of inputs with gaps
        arrays = []
        for a, (_, kind, _) in zip(args, self.listed, strict=True):
            given = () if a is None else a
            arrays.append(np.asarray(given, dtype if kind == "T" else kind, order=order))
        outputs = zip(args[self.inputs :], arrays[self.inputs :], strict=True)
        writable = all(a is b and b.flags.writeable for a, b in outputs)
        if dtype not in (np.float32, np.float64) or not writable:
            return False
        return self.function(dtype.itemsize == 8, (ctypes.py_object * len(arrays))(*arrays)) == 1


@cache
def load() -> tuple[dict[str, Loop], str, str]:
    """(loops by the names of their kernels, "compiled", what is used); none, "numpy" and why where
    they cannot be had."""
    taken = [x for x in map(Loop, KERNELS.values()) if x.taken]
    words = Path(__file__).with_suffix(".hpp").read_text()
    bodies = "\n".join(loop.cpp() for loop in taken)
    source = f"#define HEAD {object.__basicsize__}\n{words}namespace tinygrok {{\n{bodies}\n}}\n"
    try:
        made = library(source)
    except (OSError, subprocess.CalledProcessError) as error:
        why = getattr(error, "stderr", None) or error
        return {}, "numpy", f"kernels of NumPy: {one_line(why)}"
    for loop in taken:
        loop.function = made[f"{loop.kernel.name}_loop"]
    return {loop.kernel.name: loop for loop in taken}, "compiled", f"kernels compiled by {COMPILER}"
