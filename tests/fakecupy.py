"""A module that looks like CuPy, keeps its arrays in NumPy, and refuses what CuPy refuses or does
slowly or silently.

The whole suite runs on it where there is no GPU. It is stricter than CuPy: host arrays and lists
never mix with device arrays, waiting for the device is counted and can be forbidden, memory of
`empty` holds NaN, assignments through repeated or foreign indices raise, names and keywords are
those of the real package (cupy_api.json). CUDA bodies run for real, compiled by the host's C++
compiler; cuBLAS is emulated on raw pointers. What it cannot show: races, atomics, rounding of
cuBLAS and TF32, running out of memory, launch times."""

import ctypes
import functools
import inspect
import json
import math
import subprocess
import sys
import threading
import weakref
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from tinygrok.engine import compiled
from tinygrok.engine.compiled import COMPILER, parameters

API = json.loads(Path(__file__).with_name("cupy_api.json").read_text())["names"]
__version__ = "fake"


class Refused(TypeError):
    """CuPy would raise, wait for the device, copy without notice, or give an undefined result."""


# -- what is counted, and what is forbidden inside hot() -------------------------------------------


@dataclass
class Counts:
    syncs: int = 0  # the host waited for the device
    allocs: int = 0  # new device buffers
    uploads: int = 0  # host arrays copied to the device
    matmul_copies: int = 0  # operands that cupy.matmul copies: batched and not contiguous
    launches: int = 0  # kernels, a reduction or a product counted as one; zeros and copies are some


counts = Counts()
_rules = SimpleNamespace(hot=False, dtype=None, alloc=True)
_local = threading.local()  # the current device, as in CuPy one per thread
# Address -> live buffer.
_buffers: weakref.WeakValueDictionary[int, np.ndarray] = weakref.WeakValueDictionary()
_guard = threading.Lock()  # of _buffers: two ranks of a test share it


def reset() -> None:
    """Counters to zero, no hot region, device 0: the state in which every test starts."""
    counts.__dict__.update(Counts().__dict__)
    _rules.__dict__.update(hot=False, dtype=None, alloc=True)
    _local.device = 0


@contextmanager
def hot(dtype=None, alloc: bool = True):
    """Inside, waiting for the device raises, and so do floats of another dtype and (alloc=False)
    new buffers."""
    before = dict(_rules.__dict__)
    _rules.__dict__.update(hot=True, dtype=None if dtype is None else np.dtype(dtype), alloc=alloc)
    try:
        yield counts
    finally:
        _rules.__dict__.update(before)


def _sync(what: str) -> None:
    if _rules.hot:
        raise Refused(f"{what} waits for the device in a hot region")
    counts.syncs += 1


def _device() -> int:
    return getattr(_local, "device", 0)


# -- arrays ----------------------------------------------------------------------------------------


def _new(a) -> "ndarray":
    """A new device buffer with the contents of `a`, in C order."""
    a = np.asarray(a)
    if not _rules.alloc:
        raise Refused(f"a new buffer {a.dtype}{list(a.shape)} in a region that may not allocate")
    if _rules.dtype is not None and a.dtype.kind in "fc" and a.dtype != _rules.dtype:
        raise Refused(f"a {a.dtype} result in a {_rules.dtype} region")
    counts.allocs += 1
    if a.base is not None or not a.flags.c_contiguous or not a.flags.writeable:
        a = a.copy(order="C")
    with _guard:
        _buffers[a.ctypes.data] = a
    return ndarray(a)


def _wrap(result, sources=()):
    """NumPy result -> device array: a view where it shares memory with a source, else a new
    buffer."""
    if isinstance(result, tuple | list):
        return type(result)(_wrap(r, sources) for r in result)
    if not isinstance(result, np.ndarray | np.generic):
        return result
    if isinstance(result, np.ndarray):
        if result.size == 0 and result.base is not None:
            return ndarray(result)
        for s in sources:
            if result is s or (result.base is not None and np.may_share_memory(result, s)):
                return ndarray(result)
    return _new(result)


def _unwrap(x, what: str):
    """Device array -> its NumPy array; scalars, axes, shapes and dtypes pass; host arrays and lists
    of numbers do not."""
    if isinstance(x, ndarray):
        if x.device != _device():
            raise Refused(
                f"{what}: an array of device {x.device} while device {_device()} is current"
            )
        return x._a
    if isinstance(x, np.ndarray):
        raise Refused(
            f"{what}: a host array {x.dtype}{list(x.shape)} where CuPy wants a device array"
        )
    if isinstance(x, list) and not (x and all(isinstance(v, ndarray) for v in x)):
        raise Refused(f"{what}: a list where CuPy wants a device array or a tuple")
    if isinstance(x, tuple | list):
        return type(x)(_unwrap(v, what) for v in x)
    return x


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    """Two views of the very same elements."""
    return (a.ctypes.data, a.shape, a.strides) == (b.ctypes.data, b.shape, b.strides)


def _elementwise(ufunc, args, out=None, **options):
    name = ufunc.__name__
    for a in args:
        if not isinstance(a, ndarray | bool | int | float | complex | np.generic):
            raise Refused(f"{name}: {type(a).__name__} operand")
    arrays = [_unwrap(a, name) for a in args]
    if out is not None:
        if not isinstance(out, ndarray):
            raise Refused(f"{name}: out must be a device array, not {type(out).__name__}")
        if np.broadcast_shapes(*map(np.shape, arrays)) != out.shape:
            raise ValueError("Out shape is mismatched")
        options["out"] = _unwrap(out, name)
    with np.errstate(all="ignore"):  # CuPy never warns
        result = ufunc(*arrays, order="C", **options)
    counts.launches += np.size(result) > 0
    return _wrap(result) if out is None else out


class ndarray:
    """Wraps, and is not, a numpy.ndarray, so that nothing passes for a device array by accident."""

    __slots__ = ("_a", "device", "__weakref__")
    __hash__ = None

    def __init__(self, a: np.ndarray):
        self._a, self.device = a, _device()

    shape, dtype, itemsize, strides, size, ndim, nbytes, flags = (
        property(lambda self, name=name: getattr(self._a, name))
        for name in ("shape", "dtype", "itemsize", "strides", "size", "ndim", "nbytes", "flags")
    )
    T, real, imag = (
        property(lambda self, name=name: _wrap(getattr(self._a, name), (self._a,)))
        for name in ("T", "real", "imag")
    )

    @property
    def data(self):
        return SimpleNamespace(ptr=self._a.ctypes.data, device_id=self.device)

    def _refuse(self, *_, **__):
        raise Refused("implicit conversion of a device array to NumPy; use asnumpy")

    __array__ = __array_ufunc__ = __array_function__ = _refuse

    def __iter__(self):
        raise Refused("iteration over a device array launches one kernel per row")

    __contains__ = __iter__

    def __len__(self):
        return len(self._a)

    def _host(self, what):
        _sync(what)
        return self._a

    def get(self):
        return self._host("get").copy()

    def item(self):
        return self._host("item").item()

    def tolist(self):
        return self._host("tolist").tolist()

    def __float__(self):
        return float(self._host("float()"))

    def __int__(self):
        return int(self._host("int()"))

    def __complex__(self):
        return complex(self._host("complex()"))

    def __bool__(self):
        return bool(self._host("bool()"))

    def __index__(self):
        return self._host("index()").__index__()

    def __repr__(self):
        return f"fake {self._host('repr')!r}"

    def fill(self, value):
        self[...] = value

    def astype(self, dtype, copy=True):
        a = _unwrap(self, "astype")
        if not copy and a.dtype == dtype:
            return self
        counts.launches += 1
        return _new(a.astype(dtype, order="C"))

    def copy(self):
        counts.launches += 1
        return _new(self._a.copy(order="C"))  # onto the current device, also from another

    def _index(self, index, assign=False):
        """A NumPy index that yields views for basic indices; checks what CuPy leaves unchecked."""
        index = index if isinstance(index, tuple) else (index,)
        for i in index:
            if isinstance(i, np.ndarray | list):
                raise Refused("a host index is copied to the device on every call")
        plain = tuple(_unwrap(i, "index") for i in index)
        arrays = [i for i in plain if isinstance(i, np.ndarray)]
        if any(a.dtype == bool for a in arrays) and not assign:
            _sync("a boolean mask")
        if assign and any(a.dtype != bool for a in arrays):
            # Raises IndexError out of range; CuPy wraps.
            touched = np.arange(self.size).reshape(self.shape)[plain]
            if np.unique(touched).size != touched.size:
                raise Refused(
                    "assignment through repeated indices: the order of the writes is undefined"
                )
        return plain if arrays or Ellipsis in [i for i in plain if i is Ellipsis] else (*plain, ...)

    def __getitem__(self, index):
        a = _unwrap(self, "index")
        buffers = counts.allocs
        result = _wrap(a[self._index(index)], (a,))
        counts.launches += counts.allocs > buffers  # and not a view
        return result

    def __setitem__(self, index, value):
        if not isinstance(value, ndarray | bool | int | float | complex | np.generic):
            raise Refused(f"assignment of a {type(value).__name__}")
        a = _unwrap(self, "assignment")
        value = _unwrap(value, "assignment")
        index = self._index(index, assign=True)
        if np.ndim(value) and any(isinstance(i, np.ndarray) and i.dtype == bool for i in index):
            _sync("assignment of an array through a boolean mask")
        target = np.asarray(a[index])
        itself = isinstance(value, np.ndarray) and _same(value, target)  # after x[i] += y
        counts.launches += target.size > 0 and not itself
        a[index] = value

    def __matmul__(self, other):
        return sys.modules[__name__].matmul(self, other)


def _operator(ufunc, kind):
    if kind == "r":
        return lambda self, other: _elementwise(ufunc, (other, self))
    if kind == "i":
        return lambda self, other: _elementwise(ufunc, (self, other), out=self)
    return lambda self, *other: _elementwise(ufunc, (self, *other))


_BINARY = {
    "add": "add",
    "sub": "subtract",
    "mul": "multiply",
    "truediv": "true_divide",
    "floordiv": "floor_divide",
    "mod": "remainder",
    "pow": "power",
    "and_": "bitwise_and",
    "or_": "bitwise_or",
    "xor": "bitwise_xor",
    "lshift": "left_shift",
    "rshift": "right_shift",
}
for _name, _ufunc in _BINARY.items():
    for _kind in ("", "r", "i"):
        setattr(ndarray, f"__{_kind}{_name.rstrip('_')}__", _operator(getattr(np, _ufunc), _kind))
for _name, _ufunc in {
    "lt": "less",
    "le": "less_equal",
    "gt": "greater",
    "ge": "greater_equal",
    "eq": "equal",
    "ne": "not_equal",
    "neg": "negative",
    "abs": "absolute",
    "invert": "invert",
}.items():
    setattr(ndarray, f"__{_name}__", _operator(getattr(np, _ufunc), ""))


# -- functions: those of NumPy, under the names and signatures of CuPy -----------------------------


@functools.cache
def signature(name: str) -> inspect.Signature | None:
    """The signature of a CuPy function, from the table; None where the real package does not
    tell."""
    text = API[name]
    return None if text is None else inspect.signature(eval(f"lambda {text}: 0"))


def _bind(name, args, kwargs):
    if signature(name) is not None:
        try:
            signature(name).bind(*args, **kwargs)
        except TypeError as error:
            raise Refused(f"cupy.{name}: {error}") from None


_SYNCS = {
    "nonzero",
    "flatnonzero",
    "argwhere",
    "unique",
    "bincount",
    "histogram",
    "extract",
    "compress",
}
_PRODUCTS = {"matmul", "dot", "vdot", "inner", "tensordot", "einsum"}
_SHAPED = {
    "zeros",
    "ones",
    "full",
    "arange",
    "eye",
    "identity",
    "linspace",
    "tri",
}  # take no arrays


def _call(name, function, args, kwargs):
    """Call a NumPy function under CuPy's signature on unwrapped arguments."""
    _bind(name, args, kwargs)
    base = name.split(".")[-1]
    out = kwargs.get("out")
    if out is not None and not isinstance(out, ndarray):
        raise Refused(f"{name}: out must be a device array")
    if base in _SYNCS or (base == "where" and len(args) + len(kwargs) == 1):
        _sync(name)
    if base in _SHAPED:
        counts.launches += 1
        return _new(function(*args, **kwargs))
    arrays = _unwrap(tuple(args), name)
    options = {k: _unwrap(v, name) for k, v in kwargs.items()}
    sources = [*arrays, *(v for k, v in options.items() if k != "out")]
    sources = [
        a
        for x in sources
        for a in (x if isinstance(x, tuple | list) else (x,))
        if isinstance(a, np.ndarray)
    ]
    if base in _PRODUCTS:
        _check_product(name, sources, out)
    with np.errstate(all="ignore"):
        result = function(*arrays, **options)
    buffers = counts.allocs
    if out is None:
        if base in ("allclose", "array_equal", "array_equiv"):
            result = np.asarray(result)
        out = _wrap(result, sources)
        counts.launches += counts.allocs > buffers  # and not a view
    else:
        counts.launches += 1
    return out


def _check_product(name, operands, out):
    if len({a.dtype for a in operands}) > 1:
        raise Refused(f"{name}: operands of dtypes {[str(a.dtype) for a in operands]}")
    counts.matmul_copies += sum(a.ndim > 2 and not a.flags.c_contiguous for a in operands)
    if out is None:
        return
    if not out.flags.c_contiguous or out.dtype != operands[0].dtype:
        raise Refused(f"{name}: out must be C-contiguous and of dtype {operands[0].dtype}")
    if any(np.may_share_memory(out._a, a) for a in operands):
        raise Refused(f"{name}: out overlaps an operand")


class _Ufunc:
    def __init__(self, name, ufunc):
        self.name, self.ufunc = name, ufunc

    def __call__(self, *args, **kwargs):
        _bind(self.name, args, kwargs)
        nin = self.ufunc.nin
        if len(args) > nin:
            kwargs["out"], args = args[nin], args[:nin]
        return _elementwise(self.ufunc, args, **kwargs)

    def reduce(self, *args, **kwargs):
        return _call(
            "ufunc.reduce",
            lambda *a, **k: self.ufunc.reduce(*a[1:], **k),
            (self.name, *args),
            kwargs,
        )


def _method(name):
    function = getattr(np.ndarray, name)
    return lambda self, *args, **kwargs: _call(f"ndarray.{name}", function, (self, *args), kwargs)


for _name in [
    "sum",
    "prod",
    "max",
    "min",
    "mean",
    "std",
    "var",
    "any",
    "all",
    "argmax",
    "argmin",
    "argsort",
    "cumsum",
    "clip",
    "take",
    "repeat",
    "dot",
    "round",
    "conj",
    "diagonal",
    "trace",
    "reshape",
    "ravel",
    "flatten",
    "squeeze",
    "swapaxes",
    "transpose",
    "nonzero",
]:
    setattr(ndarray, _name, _method(_name))


def empty(shape, dtype=float, order="C"):
    """Memory of a pool holds old data: NaN or a large negative number, so that reading it shows."""
    dtype = np.dtype(dtype or float)
    if dtype.kind in "fc":
        junk = np.nan
    elif dtype.kind == "b":
        junk = True
    else:
        junk = np.iinfo(dtype).min // 2 or np.iinfo(dtype).max
    return _new(np.full(shape, junk, dtype))


def empty_like(prototype, dtype=None):
    return empty(_unwrap(prototype, "empty_like").shape, dtype or prototype.dtype)


def asarray(a, dtype=None):
    if isinstance(a, ndarray):
        a = a if a.device == _device() else a.copy()
        return a if dtype is None else a.astype(dtype, copy=False)
    counts.uploads += 1
    return _new(np.array(a, dtype=dtype, order="C"))


def array(a, dtype=None):
    return asarray(a, dtype).copy() if isinstance(a, ndarray) else asarray(a, dtype)


def asnumpy(a):
    return a.get() if isinstance(a, ndarray) else np.asarray(a)


def ascontiguousarray(a, dtype=None):
    host = _unwrap(a, "ascontiguousarray")
    return (
        a.astype(dtype or a.dtype, copy=False)
        if host.flags.c_contiguous
        else a.astype(dtype or a.dtype)
    )


def copyto(dst, src):
    dst[...] = src


class _MemoryPool:
    """Holds as many bytes as were alive at once since it was emptied."""

    size = 0

    def grow(self) -> bool:
        """Whether the arrays of now need more than it holds, which it then takes."""
        before = self.size
        with _guard:
            self.size = max(before, sum(a.nbytes for a in list(_buffers.values())))
        return self.size > before

    def free_all_blocks(self):
        self.size = 0
        self.grow()


pool = _MemoryPool()


def get_default_memory_pool():
    return pool


class _Module:
    """cupy.linalg and cupy.fft"""

    def __init__(self, name):
        self._name = name

    def __getattr__(self, name):
        return _find(f"{self._name}.{name}", getattr(getattr(np, self._name), name, None))


_MODULES = {name: _Module(name) for name in ("linalg", "fft")}


@functools.cache
def _find(name, found):
    if name not in API or name.startswith("random"):
        hint = ", or none that tinygrok may use" if name in API else ""
        raise AttributeError(f"module 'cupy' has no attribute {name!r}{hint}")
    if found is None:
        raise NotImplementedError(f"fakecupy lacks {name}; the real package has it")
    if isinstance(found, np.ufunc) and found.signature is None:
        return _Ufunc(name, found)
    if isinstance(found, type | _Module) or not callable(found):
        return found
    return functools.partial(lambda *args, **kwargs: _call(name, found, args, kwargs))


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return _find(name, _MODULES.get(name) or getattr(np, name, None))


# -- ElementwiseKernel: the CUDA body as a C++ loop on the host ------------------------------------

C_TYPES = {
    "int32": "int",
    "int64": "long long",
    "uint32": "unsigned int",
    "uint64": "unsigned long long",
    "bool": "bool",
    "float32": "float",
    "float64": "double",
    "int8": "signed char",
    "uint8": "unsigned char",
}


HEADER = """#include <algorithm>
#include <cmath>
#include <cstddef>
using std::isnan;
using std::ptrdiff_t;
template <typename T> struct Raw {  // a raw parameter, with the bounds that a GPU does not check
  T* p; std::ptrdiff_t n; bool* outside;
  std::ptrdiff_t size() const { return n; }
  T& operator[](std::ptrdiff_t j) const {
    *outside |= j < 0 || j >= n;
    return p[*outside ? 0 : j];
  }
};
struct Call { std::ptrdiff_t size; void** args; const std::ptrdiff_t* n; bool outside; };
struct Dim3 { unsigned int x; };
#define __device__ static inline
"""

# One thread a row, so that nothing waits.
ALONE = """
static const Dim3 blockDim = {1}, threadIdx = {0};
#define __shared__ static thread_local
static inline void __syncthreads() {}
static void launch(void (*body)(void*), void* arguments) { body(arguments); }
"""

# A block of threads on one: each runs from barrier to barrier, in the order of their numbers or
# against it. What two of them touch between the same two barriers then depends on the order.
TOGETHER = """
#include <ucontext.h>
const int MOST = 256;
extern "C" { int threads = 1, forwards = 1; }
static Dim3 blockDim, threadIdx;
#define __shared__ static
static ucontext_t scheduler, thread[MOST];
static bool done[MOST];
static void (*code)(void*);
static void* given;
static void run() { code(given); done[threadIdx.x] = true; }
static void __syncthreads() { swapcontext(&thread[threadIdx.x], &scheduler); }
static void launch(void (*body)(void*), void* arguments) {
  static char stack[MOST][1 << 16];
  code = body; given = arguments; blockDim.x = threads;
  for (int t = 0; t < threads; ++t) {
    getcontext(&thread[t]);
    thread[t].uc_stack.ss_sp = stack[t];
    thread[t].uc_stack.ss_size = sizeof stack[t];
    thread[t].uc_link = &scheduler;
    done[t] = false;
    makecontext(&thread[t], run, 0);
  }
  for (int left = threads; left > 0;) {
    left = 0;
    for (int k = 0; k < threads; ++k) {
      threadIdx.x = forwards ? k : threads - 1 - k;
      if (!done[threadIdx.x]) swapcontext(&scheduler, &thread[threadIdx.x]);
      left += !done[threadIdx.x];
    }
  }
}
"""

_block = SimpleNamespace(threads=1, forwards=True)


@contextmanager
def block_of(threads: int, forwards: bool):
    """Inside, kernels by row run a block of so many threads, a power of two up to 256."""
    _block.__dict__.update(threads=threads, forwards=forwards)
    try:
        yield
    finally:
        _block.__dict__.update(threads=1, forwards=True)


def cpp_source(inputs: str, outputs: str, body: str, name: str) -> str:
    """C++ for one kernel, with references as CuPy makes them.

    _n[j] is the step of argument j (0: a scalar); of a raw one it is the size."""
    const = [True] * len(parameters(inputs)) + [False] * len(parameters(outputs))
    outside, inside = [], []
    for j, ((raw, kind, p), c) in enumerate(
        zip(parameters(inputs) + parameters(outputs), const, strict=True)
    ):
        t = ("const " if c else "") + C_TYPES.get(kind, kind)
        if raw:
            outside.append(f"Raw<{t}> {p} = {{({t}*)_args[{j}], _n[{j}], &_call->outside}};")
        else:
            outside.append(f"{t}* _p{j} = ({t}*)_args[{j}];")
            inside.append(f"{t}& {p} = _p{j}[i * _n[{j}]];")
    instances = "".join(
        f'extern "C" int {name}_{t}(ptrdiff_t s, void** a, const ptrdiff_t* n) {{\n'
        f"  Call call = {{s, a, n, false}};\n"
        f"  launch({name}_host<{t}>, &call);\n  return call.outside;\n}}\n"
        for t in ("float", "double")
    )
    return f"""
template <typename T>
static void {name}_host(void* _given) {{
  using namespace std;
  Call* _call = (Call*)_given;
  void** _args = _call->args;
  const std::ptrdiff_t* _n = _call->n;
  {" ".join(outside)}
  for (std::ptrdiff_t i = threadIdx.x; i < _call->size; i += blockDim.x) {{
    {" ".join(inside)}
    {body};
  }}
}}
{instances}"""


@functools.cache
def _library(source: str) -> ctypes.CDLL:
    try:
        return compiled.library(source)
    except subprocess.CalledProcessError as error:
        raise ValueError(f"the CUDA body does not compile as C++:\n{error.stderr}") from None


@functools.cache
def _kernels(inputs, outputs, body, name, preamble, block: str) -> ctypes.CDLL:
    """The library that a kernel is in: all of tinygrok's go into one, which takes one run of the
    compiler, and those by row into a second one for blocks of threads."""
    from tinygrok.engine import row_kernels  # noqa: F401  (its kernels are in KERNELS)
    from tinygrok.engine.kernels import KERNELS

    known = {k.name: (k.inputs, k.outputs, k.cuda, k.name, k.preamble) for k in KERNELS.values()}
    mine = (inputs, outputs, body, name, preamble)
    sources = [mine]
    if known.get(name) == mine:
        sources = [k for k in known.values() if block == ALONE or k[-1] == preamble]
    preambles = dict.fromkeys(k[-1] for k in sources)
    return _library("".join((HEADER, block, *preambles, *(cpp_source(*k[:-1]) for k in sources))))


def _run_kernel(key, ctype, size: int, pointers, steps, by_row: bool) -> bool:
    """Run it on a size; True: it left the bounds of a raw parameter."""
    together = by_row and _block.threads > 1
    library = _kernels(*key, TOGETHER if together else ALONE)
    if together:
        ctypes.c_int.in_dll(library, "threads").value = _block.threads
        ctypes.c_int.in_dll(library, "forwards").value = _block.forwards
        size *= _block.threads
    return getattr(library, f"{key[3]}_{ctype}")(ctypes.c_ssize_t(size), pointers, steps)


def _scalar(value, dtype, what):
    if not isinstance(value, bool | int | float | np.generic):
        raise Refused(f"{what}: {type(value).__name__} for a scalar")
    if dtype.kind in "iu" and not (
        value == int(value) and np.iinfo(dtype).min <= value <= np.iinfo(dtype).max
    ):
        raise Refused(f"{what}: {value} does not fit {dtype}")
    return np.array(value, dtype=dtype)


class ElementwiseKernel:
    """cupy.ElementwiseKernel with outputs given; `T` is taken from the array arguments, scalars are
    cast to it."""

    def __init__(self, in_params, out_params, operation, name="kernel", preamble=""):
        self.key = (in_params, out_params, operation, name, preamble)
        self.name, self.nin = name, len(parameters(in_params))
        self.params = parameters(in_params) + parameters(out_params)
        if "i" in [p for _, _, p in self.params]:
            raise ValueError("Can not use 'i' as a parameter name")

    def __call__(self, *args, size=None, block_size=128):
        """With a size: that many threads in blocks of block_size, a block a row; all arrays raw."""
        if len(args) != len(self.params):
            raise Refused(
                f"{self.name} takes {len(self.params)} arguments with outputs, not {len(args)}"
            )
        types, arrays = {}, []
        # Outputs decide first, as in CuPy.
        for j in (*range(self.nin, len(args)), *range(self.nin)):
            (_, kind, p), a = self.params[j], args[j]
            if not isinstance(a, ndarray):
                if j >= self.nin or not isinstance(a, bool | int | float | np.generic):
                    raise Refused(f"{self.name}: {p} is a {type(a).__name__}")
                continue
            want = types.setdefault(kind, a.dtype) if len(kind) == 1 else np.dtype(kind)
            if a.dtype != want:
                raise Refused(f"{self.name}: Type is mismatched. {p} {a.dtype} {want}")
        shapes = [
            a.shape
            for a, (raw, _, _) in zip(args, self.params, strict=True)
            if isinstance(a, ndarray) and not raw
        ]
        if size is None:
            shape = np.broadcast_shapes(*shapes)
        else:
            shape = (self._rows(shapes, size, block_size),)
        for (raw, kind, p), a in zip(self.params, args, strict=True):
            what = f"{self.name}: {p}"
            if not isinstance(a, ndarray):
                if raw:
                    raise Refused(f"{what} is raw and must be an array")
                arrays.append(_scalar(a, types[kind] if len(kind) == 1 else np.dtype(kind), what))
            elif raw and size is None and not a.flags.c_contiguous:
                raise Refused(f"{what} is raw and not contiguous")
            else:
                host = _unwrap(a, what)
                arrays.append(host if raw or host.shape == shape else np.broadcast_to(host, shape))
        for a in args[self.nin :]:
            if a.shape != shape and size is None:
                raise ValueError("Out shape is mismatched")
        if 0 not in shape:
            counts.launches += 1
            self._run(args, arrays, shape, types.get("T", np.dtype("float32")), size)
        return args[self.nin] if len(args) == self.nin + 1 else args[self.nin :]

    def _rows(self, shapes, size, block_size) -> int:
        """The blocks of a launch with a size."""
        if shapes:
            raise ValueError("Specified 'size' can be used only if all of the ndarray are 'raw'.")
        if block_size not in (32, 64, 128, 256) or size % block_size:
            raise Refused(f"{self.name}: {size} threads in blocks of {block_size}")
        return size // block_size

    def _run(self, args, arrays, shape, dtype, size):
        if COMPILER is None:
            from tinygrok.engine.kernels import KERNELS

            twin = KERNELS[self.name].numpy
            given = args if size is None else args[1:]  # without N
            with np.errstate(all="ignore"):
                twin(*(a._a if isinstance(a, ndarray) else a for a in given))
            return
        ctype = "double" if dtype == np.float64 else "float"
        flat = self._contiguous(arrays)
        pointers = (ctypes.c_void_p * len(flat))(*(a.ctypes.data for a in flat))
        raws = [raw for raw, _, _ in self.params]
        steps = [
            a.size if raw else int(isinstance(a, ndarray))
            for a, raw in zip(args, raws, strict=True)
        ]
        steps = (ctypes.c_ssize_t * len(flat))(*steps)
        if _run_kernel(self.key, ctype, math.prod(shape), pointers, steps, size is not None):
            what = "an index outside a raw parameter; a GPU would read or write other memory"
            raise Refused(f"{self.name}: {what}")
        for given, used in zip(arrays[self.nin :], flat[self.nin :], strict=True):
            if given is not used:
                given[...] = used

    def _contiguous(self, arrays) -> list:
        """The arrays, or copies where they have gaps: one copy of what is given twice."""
        flat = []
        for j, a in enumerate(arrays):
            twice = [k for k in range(j) if a.ndim and _same(a, arrays[k])]
            flat.append(flat[twice[0]] if twice else np.ascontiguousarray(a) if a.ndim else a)
            overlaps = [k for k in range(j) if not twice and _shares(a, arrays[k])]
            if overlaps and j >= self.nin and self.params[j][0]:
                raise Refused(f"{self.name}: {self.params[j][2]} overlaps another argument")
        return flat


# -- cuda: devices, and cuBLAS on raw pointers -----------------------------------------------------

_HANDLE = 4711
_DEVICES = 2


class _CudaDevice:
    def __init__(self, device=None):
        self.id = _device() if device is None else int(device)
        if not 0 <= self.id < _DEVICES:
            raise ValueError("cudaErrorInvalidDevice: invalid device ordinal")
        self._before = []

    def use(self):
        _local.device = self.id

    def __enter__(self):
        self._before.append(_device())
        self.use()
        return self

    def __exit__(self, *_):
        _local.device = self._before.pop()

    def synchronize(self):
        _sync("Device.synchronize")


def _memory(pointer, dtype, batch, rows, cols, ld, stride):
    """Column-major (rows, cols) matrices at an address, as the row-major (batch, cols, rows) array
    NumPy sees there."""
    if stride < 0 or rows * cols * batch == 0:
        raise Refused(f"cuBLAS: a {batch} x {rows} x {cols} operand with batch stride {stride}")
    count = (batch - 1) * stride + (cols - 1) * ld + rows
    end = pointer + count * dtype.itemsize
    with _guard:
        live = list(_buffers.items())
    if not any(start <= pointer and end <= start + a.nbytes for start, a in live):
        raise Refused("cuBLAS: an operand reaches outside every device buffer (or a host pointer)")
    flat = np.frombuffer((ctypes.c_char * (count * dtype.itemsize)).from_address(pointer), dtype)
    steps = (stride * dtype.itemsize, ld * dtype.itemsize, dtype.itemsize)
    return np.lib.stride_tricks.as_strided(flat, (batch, cols, rows), steps)


def _shares(a, b):
    try:
        return np.may_share_memory(a, b) and np.shares_memory(a, b, max_work=10_000)
    except np.exceptions.TooHardError:
        return False


def _gemm(
    handle,
    transa,
    transb,
    m,
    n,
    k,
    alpha,
    A,
    Atype,
    lda,
    strideA,
    B,
    Btype,
    ldb,
    strideB,
    beta,
    C,
    Ctype,
    ldc,
    strideC,
    batchCount,
    computeType,
    algo,
):
    """C = alpha op(A) op(B) + beta C, column-major, for every matrix of the batch."""
    if handle != _HANDLE + _device() or algo != -1 or {transa, transb} - {0, 1}:
        raise Refused("cuBLAS: wrong handle, algorithm or transpose flag")
    if {(Atype, Btype, Ctype, computeType)} - {(0, 0, 0, 68), (0, 0, 0, 77), (1, 1, 1, 70)}:
        raise Refused(f"cuBLAS: types {Atype}, {Btype}, {Ctype} with compute type {computeType}")
    if lda < max(1, k if transa else m) or ldb < max(1, n if transb else k) or ldc < max(1, m):
        raise Refused(f"cuBLAS: leading dimensions {lda}, {ldb}, {ldc} for m, n, k = {m}, {n}, {k}")
    if batchCount > 1 and strideC == 0:
        raise Refused("cuBLAS: all matrices of the batch written to one place")
    dtype = np.dtype("float64" if Ctype else "float32")
    number = ctypes.c_double if Ctype else ctypes.c_float
    alpha, beta = (dtype.type(number.from_address(p).value) for p in (alpha, beta))
    a = _memory(A, dtype, batchCount, *((k, m) if transa else (m, k)), lda, strideA)
    b = _memory(B, dtype, batchCount, *((n, k) if transb else (k, n)), ldb, strideB)
    c = _memory(C, dtype, batchCount, m, n, ldc, strideC)
    if _shares(c, a) or _shares(c, b):
        raise Refused("cuBLAS: the result overlaps an operand")
    a, b = a.swapaxes(1, 2) if transa else a, b.swapaxes(1, 2) if transb else b
    with np.errstate(all="ignore"):
        counts.launches += 1
        product = np.matmul(b, a)  # the row-major reading of C^T = op(B)^T op(A)^T
        if alpha != 1:
            product *= alpha
        c[...] = product + beta * c if beta else product  # beta = 0 does not read C


_stream = SimpleNamespace(synchronize=lambda: _sync("Stream.synchronize"), ptr=0)
cuda = SimpleNamespace(
    is_available=lambda: True,
    Device=_CudaDevice,
    device=SimpleNamespace(get_cublas_handle=lambda: _HANDLE + _device()),
    cublas=SimpleNamespace(gemmStridedBatchedEx=_gemm),
    runtime=SimpleNamespace(
        getDeviceCount=lambda: _DEVICES,
        getDeviceProperties=lambda device: {"name": b"strict fake"},
        deviceSynchronize=lambda: _sync("deviceSynchronize"),
    ),
    Stream=SimpleNamespace(null=_stream),
    get_current_stream=lambda: _stream,
)


def fake_device(dtype: str = "float32"):
    """A tinygrok Device of kind "cuda" whose array module is this one."""
    from tinygrok.engine.device import Device

    return Device("cuda", sys.modules[__name__], dtype, 1, "strict fake of CuPy")
