"""Every fused kernel: its NumPy body against its CUDA body, the latter compiled as C++; and NVRTC
takes every CUDA body. More on kernels by row in test_row_kernels.py."""

import ctypes
import ctypes.util
import importlib.util
import math
import re
from pathlib import Path

import fakecupy as xp
import numpy as np
import pytest

from tinygrok.engine import row_kernels  # noqa: F401  (its kernels are in KERNELS)
from tinygrok.engine.kernels import ACTIVATIONS, KERNELS, erf

S, P, N, B, E = 2, 5, 3, 8, 2  # tables, rows, width, inputs, members

# -- one maker of arguments per kernel; a new kernel without one fails the tests -------------------


def values(*shape):
    """Inputs of an activation: both signs, zero, and far into the tails."""

    def make(rng, dtype):
        x = rng.normal(0, 2, shape).astype(dtype)
        x.flat[:5] = 0, -7, 7, 1e-3, -0.5
        return x

    return make


def fresh(*shape):
    return lambda rng, dtype: np.full(shape, np.nan, dtype)


def positive(*shape):
    return lambda rng, dtype: rng.uniform(0.1, 1, shape).astype(dtype)


def integers(high, *shape, dtype="int64"):
    return lambda rng, _: rng.integers(0, high, shape).astype(dtype)


def causal(queries, keys, dtype):
    """The mask of the last queries: 0 and -inf."""
    return np.where(np.tri(queries, keys, keys - queries) > 0, 0, -np.inf).astype(dtype)


X, Y = values(E, 4, 7), fresh(E, 4, 7)
MAKERS = {
    f"{name}{suffix}": [X, X, Y] if suffix == "_df" else [X, Y]
    for name in ACTIVATIONS
    if name != "power"  # which also takes its exponent
    for suffix in ("", "_df", "_d2f")
}
COLUMN = positive(E, 1)  # one value per member
GEOMETRY = (5, 4, 3, 2, 3, 2, 1)  # images of 5 x 4 pixels, patches of 3 x 3 at every second one
WINDOWS = integers(4, E, 2, 2, 3, dtype="int32")
MAKERS |= {
    "power": [3, X, Y],
    "power_df": [3, X, X, Y],
    "power_d2f": [3, X, Y],
    "adamw": [
        values(E, 30),
        COLUMN,
        1e-3,
        0.9,
        0.1,
        0.98,
        0.02,
        1e-8,
        values(E, 30),
        values(E, 30),
        positive(E, 30),
    ],
    "sgd": [values(E, 30), 0.1, COLUMN, 0.9, values(E, 30), values(E, 30)],
    "dropout_mask": [integers(2**32, E, 2, dtype="uint32"), 11, 28, 2**30, 4 / 3, fresh(E, 4, 7)],
    "gather_sum": [
        values(E, S, P, N),
        integers(P, E, S, B, dtype="int32"),
        S,
        P,
        B,
        fresh(E, B, N),
    ],
    "segment_sum": [
        values(E, B, N),
        lambda rng, _: segments(rng)[0],
        lambda rng, _: segments(rng)[1],
        S,
        P,
        B,
        0,
        fresh(E, S, P, N),
    ],
    "rotate": [X, X, X, X, -1.0, Y, Y],
    "subtract_onehot": [values(E, 4, P), integers(P, 4, 1), P, fresh(E, 4, P)],
    "softmax": [X, lambda rng, dtype: causal(4, 7, dtype), Y],
    "softmax_backward": [values(E, 4, 3), values(E, 4, 3), positive(E, 4, 7), X, Y],
    "cross_entropy": [X, integers(7, 4, 1), fresh(E, 4, 1), Y],
    "mse": [X, integers(7, 4, 1), fresh(E, 4, 1), Y],
    "layernorm": [X, values(E, 1, 7), values(E, 1, 7), 1e-5, fresh(E, 4, 1), Y, Y],
    "layernorm_backward": [X, X, positive(E, 4, 1), values(1, 7), X, Y],
    "patches": [values(E, 5, 4, 3), *GEOMETRY, fresh(E * 6, 27)],
    "patches_backward": [values(E * 6, 27), *GEOMETRY, fresh(E, 5, 4, 3)],
    "maxpool": [values(E, 5, 4, 3), 5, 4, 2, WINDOWS, fresh(E, 2, 2, 3)],
    "maxpool_backward": [values(E, 2, 2, 3), WINDOWS, 5, 4, 2, fresh(E, 5, 4, 3)],
}
# further settings of kernels that have branches or strides in them
CASES = (
    [(name, make) for name, make in MAKERS.items()]
    + [
        (name, [k, *MAKERS[name][1:]])
        for name in ("power", "power_df", "power_d2f")
        for k in (1, 2, 5)
    ]
    + [
        (
            "gather_sum",
            [values(E, S, P, N), integers(P, S, B, dtype="int32"), S, P, B, fresh(E, B, N)],
        ),
        (
            "segment_sum",
            [
                values(E, B, N),
                lambda rng, _: segments(rng, E)[0],
                lambda rng, _: segments(rng, E)[1],
                S,
                P,
                B,
                0,
                fresh(E, S, P, N),
            ],
        ),
        (
            "segment_sum",
            [
                values(E, B, N),
                lambda rng, _: segments(rng)[0],
                lambda rng, _: segments(rng)[1],
                S,
                P,
                B,
                1,
                values(E, S, P, N),
            ],
        ),
        ("dropout_mask", [integers(2**32, 2, dtype="uint32"), 0, 28, 0, 1.0, fresh(4, 7)]),
        ("cross_entropy", [X, integers(7, E, 4, 1), fresh(E, 4, 1), Y]),
        ("mse", [X, integers(7, E, 4, 1), fresh(E, 4, 1), Y]),
        ("softmax", [X, None, Y]),
        ("layernorm", [X, values(1, 7), None, 1e-5, fresh(E, 4, 1), Y, Y]),
        ("layernorm_backward", [X, X, positive(E, 4, 1), values(E, 1, 7), X, Y]),
    ]
)


def segments(rng, *members):
    """order and starts of random rows, as ops.embedding.RowIndex makes them; row 0 does not
    occur."""
    index = rng.integers(1, P, (*members, S, B))
    order = index.argsort(axis=-1, kind="stable").astype("int32")
    starts = (index[..., None] < np.arange(P + 1)).sum(axis=-2).astype("int32")
    return order, starts


def arguments(name, makers, dtype):
    """The same arguments on every call: a seed per kernel and argument."""
    rng = np.random.default_rng([*name.encode()])
    if name == "segment_sum":  # order and starts must belong together
        state = rng.bit_generator.state
        made = []
        for make in makers:
            rng.bit_generator.state = state
            made.append(make(rng, dtype) if callable(make) else make)
        return made
    return [make(rng, dtype) if callable(make) else make for make in makers]


def test_every_kernel_has_arguments_here():
    assert set(MAKERS) == set(KERNELS)


@pytest.mark.skipif(xp.COMPILER is None, reason="no C++ compiler to compile the CUDA bodies with")
@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 2e-6), ("float64", 1e-13)])
@pytest.mark.parametrize(
    ("name", "makers"), CASES, ids=[f"{i}-{name}" for i, (name, _) in enumerate(CASES)]
)
def test_cuda_body_agrees_with_numpy_body(name, makers, dtype, rtol):
    kernel, host = KERNELS[name], arguments(name, makers, dtype)
    device = [
        xp.asarray(a) if isinstance(a, np.ndarray) else a for a in arguments(name, makers, dtype)
    ]
    kernel.numpy(*host)
    kernel(xp.fake_device(dtype), *device)
    outputs = len(xp.parameters(kernel.outputs))
    for ours, theirs in zip(device[-outputs:], host[-outputs:], strict=True):
        assert np.isfinite(theirs).all()
        slack = 20 if name == "gelu_tanh_d2f" else 1  # 1 - tanh^2 cancels in the tails
        atol = rtol * min(np.abs(theirs).max(), 1) * slack
        np.testing.assert_allclose(ours.get(), theirs, rtol=rtol, atol=atol)


def aliases():
    """(kernel, position of an input that has the shape and type of its only output)"""
    for name, makers in MAKERS.items():
        host, inputs = arguments(name, makers, "float64"), xp.parameters(KERNELS[name].inputs)
        if len(host) == len(inputs) + 1:
            for j, (raw, kind, _) in enumerate(inputs):
                if not raw and kind == "T" and np.shape(host[j]) == host[-1].shape:
                    yield name, j


@pytest.mark.parametrize(("name", "j"), list(aliases()))
def test_output_may_alias_an_input(name, j, dev):
    kernel, expected = KERNELS[name], arguments(name, MAKERS[name], dev.dtype)
    kernel.numpy(*expected)
    device = [
        dev.to_device(a) if isinstance(a, np.ndarray) else a
        for a in arguments(name, MAKERS[name], dev.dtype)
    ]
    device[-1] = device[j]
    kernel(dev, *device)
    rtol = 1e-12 if dev.dtype == np.float64 else 1e-4
    np.testing.assert_allclose(dev.to_host(device[j]), expected[-1], rtol=rtol, atol=rtol)


# -- erf -------------------------------------------------------------------------------------------


ERF_INPUTS = [
    0.0,
    -0.0,
    1e-300,
    1e-30,
    1e-8,
    0.1,
    0.5,
    1.0,
    math.nextafter(1, 2),
    2.5,
    3.0,
    5.9,
    6.0,
    7.0,
    1e10,
    math.inf,
]


@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-15), ("float32", 3e-7)])
def test_erf(dtype, rtol):
    x = np.concatenate([ERF_INPUTS, np.logspace(-20, 0.8, 500), np.linspace(0, 6.5, 1001)])
    x = np.concatenate([x, -x]).astype(dtype)
    expected = np.array([math.erf(v) for v in x])
    y = erf(x)
    assert y.dtype == dtype
    assert np.array_equal(np.signbit(y), np.signbit(x))
    # Subnormal inputs have fewer digits to be right in.
    normal = (np.abs(x) > np.finfo(dtype).tiny) | (x == 0)
    np.testing.assert_allclose(y[normal], expected[normal], rtol=rtol, atol=0)
    assert np.isnan(erf(np.array([math.nan], dtype)))
    assert np.abs(y).max() == 1


# -- NVRTC, the compiler that CuPy uses; it needs no GPU -------------------------------------------


def nvrtc_library():
    """libnvrtc of the CUDA wheels or of the system, or None."""
    spec = importlib.util.find_spec("nvidia")
    folders = list(spec.submodule_search_locations or []) if spec else []
    found = [
        p
        for f in folders
        for p in sorted(Path(f).glob("*/lib/libnvrtc.so*"))
        if "builtins" not in p.name
    ]
    for path in (*found, ctypes.util.find_library("nvrtc")):
        try:
            return ctypes.CDLL(str(path)) if path else None
        except OSError:
            continue
    return None


NVRTC = nvrtc_library()


RAW = """
template <typename T> struct Raw {  // CuPy's CArray, of which more is not used
  T* p; ptrdiff_t n;
  __device__ ptrdiff_t size() const { return n; }
  __device__ T& operator[](ptrdiff_t j) const { return p[j]; }
};
"""


def cuda_source(kernel, ctype):
    """The kernel as CuPy 14 would write it: references for arrays, constants for scalars.

    Here every parameter that is not raw is an array."""
    const = [True] * len(xp.parameters(kernel.inputs)) + [False] * len(
        xp.parameters(kernel.outputs)
    )
    declared, loads = [], []
    for (raw, kind, p), c in zip(
        xp.parameters(kernel.inputs) + xp.parameters(kernel.outputs), const, strict=True
    ):
        t = ("const " if c else "") + xp.C_TYPES.get(kind, kind)
        declared.append(f"Raw<{t}> {p}" if raw else f"{t}* _raw_{p}")
        loads += [] if raw else [f"{t} &{p} = _raw_{p}[i];"]
    return f"""
typedef {ctype} T;
{RAW}
{kernel.preamble}
extern "C" __global__ void k_{kernel.name}({", ".join(declared)}, ptrdiff_t _n) {{
  const ptrdiff_t _step = (ptrdiff_t)blockDim.x * gridDim.x;
  for (ptrdiff_t i = (ptrdiff_t)blockIdx.x * blockDim.x + threadIdx.x; i < _n; i += _step) {{
    {" ".join(loads)}
    {kernel.cuda};
  }}
}}
"""


def nvrtc_log(source: str, arch: int) -> str | None:
    """None when NVRTC compiles the source, its messages otherwise. Warnings count as errors, but
    for unused variables."""
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    assert (
        NVRTC.nvrtcCreateProgram(
            ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None
        )
        == 0
    )
    options = [
        f"--gpu-architecture=compute_{arch}".encode(),
        b"--std=c++14",
        b"--diag-suppress=177",
    ]
    failed = NVRTC.nvrtcCompileProgram(
        program, len(options), (ctypes.c_char_p * len(options))(*options)
    )
    NVRTC.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    NVRTC.nvrtcGetProgramLog(program, log)
    NVRTC.nvrtcDestroyProgram(ctypes.byref(program))
    text = log.value.decode()
    return text or "failed" if failed or re.search("warning|error", text) else None


@pytest.mark.skipif(
    NVRTC is None, reason="libnvrtc is not installed (pip install nvidia-cuda-nvrtc)"
)
@pytest.mark.parametrize("ctype", ["float", "double"])
@pytest.mark.parametrize("arch", [80, 90])
def test_nvrtc_compiles_every_kernel(arch, ctype):
    """All kernels in one program for speed; T is one type per program, as in CuPy."""
    once = [f"typedef {ctype} T;\n", RAW, *{k.preamble for k in KERNELS.values() if k.preamble}]
    source = "".join(cuda_source(k, ctype) for k in KERNELS.values())
    for text in once:
        source = source.replace(text, "")
    log = nvrtc_log("".join(once) + source, arch)
    assert log is None, log


@pytest.mark.skipif(
    NVRTC is None, reason="libnvrtc is not installed (pip install nvidia-cuda-nvrtc)"
)
def test_nvrtc_finds_an_error():
    source = cuda_source(KERNELS["square"], "float")
    assert nvrtc_log(source, 80) is None
    assert "undefined" in nvrtc_log(source.replace("y = x * x", "y = x * z"), 80)
    assert nvrtc_log(source.replace("y = x * x", "x = y"), 80) is not None  # inputs are constant
