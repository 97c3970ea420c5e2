"""Every name and keyword that tinygrok takes from CuPy exists in the real package.

cupy_api.json lists them, with signatures; a GPU is not needed to make it. Refresh it with an
installed CuPy by `python tests/test_cupy_api.py --refresh`.
"""

import ast
import inspect
import json
import re
import sys
import warnings
from pathlib import Path

import numpy as np

if __name__ != "__main__":  # the refresh runs where CuPy is, with or without pytest
    import pytest

TABLE = Path(__file__).with_name("cupy_api.json")
PACKAGE = Path(__file__).parents[1] / "tinygrok"

# -- the table, from the real package --------------------------------------------------------------

_DOC = re.compile(r"^[\w.]*\((.*)\)( -> .*)?$")


def _default(text: str) -> str:
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return "..."
    return text


def _parameters(text: str) -> str | None:
    """'self, Py_ssize_t axis1, out=None, \\*' -> 'self, axis1, out=None, *'"""
    parameters = []
    for p in filter(None, (p.strip().replace("\\", "") for p in text.split(","))):
        name, _, value = p.partition("=")
        name = name.split(":")[0].split()[-1]
        parameters.append(name if not value else f"{name}={_default(value.strip())}")
    joined = ", ".join(parameters)
    try:
        eval(f"lambda {joined}: 0")
    except SyntaxError:
        return None
    return joined


def _signature(x) -> str | None:
    """Parameters of a Python function or class, or those in the first line of a compiled one's
    docstring."""
    if not callable(x):
        return None
    documented = _DOC.match((x.__doc__ or "").partition("\n")[0])
    try:
        given = inspect.signature(x)
    except (ValueError, TypeError):
        given = None
    if given is not None and not (documented and "kwargs" in given.parameters):
        plain = [
            p.replace(
                annotation=p.empty,
                default=p.default if p.default is p.empty else _literal(p.default),
            )
            for p in given.parameters.values()
        ]
        return str(inspect.Signature(plain))[1:-1].replace("Ellipsis", "...")
    return _parameters(documented[1]) if documented else None


def _literal(value):
    return value if value is None or type(value) in (bool, int, str) else ...


def _public(prefix: str, owner) -> dict[str, str | None]:
    """Public names of a module or class. What CuPy takes over from NumPy, types and constants, is a
    name only."""
    found = {
        n: getattr(owner, n) for n in dir(owner) if not n.startswith("_") and hasattr(owner, n)
    }
    found = {n: x for n, x in found.items() if not inspect.ismodule(x) or n in ("linalg", "fft")}
    return {
        prefix + n: None if x is getattr(np, n, _public) else _signature(x)
        for n, x in found.items()
    }


def _from_binary(prefix: str, path: Path, names: str) -> dict[str, str | None]:
    """Signatures out of the docstrings in a compiled module that needs a GPU library to be
    imported."""
    text = path.read_bytes().decode("latin-1")
    found = re.findall(
        rf"(?<![\w.])(?:NcclCommunicator\.)?({names})\((.*?)\)(?: -> \w+)?[\n\0]", text
    )
    return {prefix + name: _parameters(parameters) for name, parameters in found}


def collect() -> dict:
    """The table for the installed CuPy."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import cupy
        import cupy_backends.cuda.libs as libs

        names = (
            _public("", cupy) | _public("ndarray.", cupy.ndarray) | _public("ufunc.", cupy.ufunc)
        )
        for module in ("linalg", "fft"):
            names |= _public(module + ".", getattr(cupy, module))
        for name in (
            "is_available",
            "Device",
            "Stream",
            "Event",
            "get_current_stream",
            "device",
            "runtime",
            "Graph",
        ):
            names[f"cuda.{name}"] = _signature(getattr(cupy.cuda, name))
        for name in ("Device", "Stream", "Event", "device"):
            names |= _public(f"cuda.{name}.", getattr(cupy.cuda, name))
        for name in (
            "getDeviceCount",
            "getDeviceProperties",
            "deviceSynchronize",
            "memGetInfo",
            "setDevice",
            "getDevice",
            "deviceCanAccessPeer",
        ):
            names[f"cuda.runtime.{name}"] = _signature(getattr(cupy.cuda.runtime, name))
    (folder,) = libs.__path__
    names |= {"cuda": None, "cuda.cublas": None, "cuda.nccl": None}
    (cublas,) = Path(folder).glob("cublas.*")
    names |= _from_binary(
        "cuda.cublas.", cublas, "gemmStridedBatchedEx|gemmEx|setStream|setWorkspace|setMathMode"
    )
    (nccl,) = Path(folder).glob("nccl.*")
    names |= _from_binary("cuda.nccl.", nccl, "get_unique_id|groupStart|groupEnd|get_version")
    names |= _from_binary(
        "cuda.nccl.NcclCommunicator.",
        nccl,
        "allReduce|broadcast|bcast|reduce|initAll|destroy|allGather",
    )
    return {"cupy": cupy.__version__, "names": dict(sorted(names.items()))}


if __name__ == "__main__":
    if sys.argv[1:] != ["--refresh"]:
        sys.exit(__doc__)
    TABLE.write_text(json.dumps(collect(), indent=0) + "\n")
    sys.exit()


# -- what the library uses -------------------------------------------------------------------------

# Files that may name cupy and xp.cuda.
GPU_FILES = {"engine/device.py", "engine/gemm.py", "engine/kernels.py", "training/parallel.py"}
# Functions of ops/ and models/ that may call NumPy, besides those named *_host ...
HOST_CODE = {"init", "init_buffers", "__init__"}
# ... and classes whose methods may, and why.
HOST_CLASSES = {
    "RowIndex": "sorts indices on the host, once",
    "_HostGroups": "their groups for NumPy, made only where the device is the host",
    "Decoder": "takes and returns host arrays; GPT.forward is what runs on the device",
}
NOT_ARRAYS = {"np", "math", "kernels"}
SOURCES = {
    path.relative_to(PACKAGE).as_posix(): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))
}


class Uses(ast.NodeVisitor):
    """complaints: what a source takes from CuPy that is not there;  names: every name it takes"""

    def __init__(self, source: str, table: dict[str, str | None]):
        self.table = table
        self.complaints = []
        self.names = set()
        self.aliases = {}
        self.functions = []
        self.visit(ast.parse(source))

    def path(self, node) -> str | None:
        """ "cuda.cublas.gemmEx" of `dev.xp.cuda.cublas.gemmEx`, "" of `xp`; None for what is no
        part of CuPy."""
        if isinstance(node, ast.Name):
            return "" if node.id in ("xp", "cupy") else self.aliases.get(node.id)
        if isinstance(node, ast.Call):  # a method of a new object: cuda.Device(0).use
            made = self.path(node.func)
            return made if made and made.split(".")[-1][0].isupper() else None
        if isinstance(node, ast.Attribute):
            owner = self.path(node.value)
            if owner is None:
                return "" if node.attr == "xp" else None
            return f"{owner}.{node.attr}".lstrip(".")
        return None

    def entry(self, path: str) -> str | None:
        """The name in the table; None where it is missing. Methods of ufuncs stand there once."""
        owner, _, method = path.rpartition(".")
        if path in self.table:
            return path
        return (
            f"ufunc.{method}" if owner in self.table and f"ufunc.{method}" in self.table else None
        )

    def visit_Assign(self, node):
        if len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            path = self.path(node.value) if isinstance(node.value, ast.Attribute) else None
            if path is not None:
                self.aliases[node.targets[0].id] = path
        self.generic_visit(node)

    def visit_FunctionDef(self, node):
        self.functions.append(node.name)
        self.generic_visit(node)
        self.functions.pop()

    def visit_Attribute(self, node):
        path = self.path(node)
        if path and "__" not in path:
            self.names.add(path)
            if self.entry(path) is None:
                self.complaints.append(f"line {node.lineno}: cupy has no {path}")
        self.generic_visit(node)

    def visit_Call(self, node):
        path = self.path(node.func)
        name = self.entry(path) if path else None
        # bound: the table's signature has self
        bound = name is not None and re.match(r"ufunc\.|(.*\.)?[A-Z]\w*\.", name) is not None
        method = path is None and isinstance(node.func, ast.Attribute)
        if method and not self.on_host(node.func.value):
            name = f"ndarray.{node.func.attr}"
            bound = True
        parameters = self.table.get(name)
        keywords = [k.arg for k in node.keywords]
        # The receiver of a method may be no array: without keywords nothing is known.
        if parameters is not None and (path is not None or keywords):
            starred = None in keywords or any(isinstance(a, ast.Starred) for a in node.args)
            positional = [0] * (bound + len(node.args))
            signature = inspect.signature(eval(f"lambda {parameters}: 0"))
            try:
                if starred:
                    signature.bind_partial(**{k: 0 for k in keywords if k})
                else:
                    signature.bind(*positional, **dict.fromkeys(keywords, 0))
            except TypeError as error:
                self.complaints.append(f"line {node.lineno}: cupy.{name}: {error}")
        self.generic_visit(node)

    def on_host(self, receiver) -> bool:
        root = receiver
        while isinstance(root, ast.Attribute | ast.Subscript | ast.Call):
            root = root.func if isinstance(root, ast.Call) else root.value
        named = isinstance(root, ast.Name) and root.id in NOT_ARRAYS
        return named or any(f.endswith("_host") for f in self.functions)


def table() -> dict[str, str | None]:
    return json.loads(TABLE.read_text())["names"]


def device_code(name: str) -> bool:
    """Files whose arrays may live on a device; elsewhere a method called with keywords may belong
    to a host array."""
    return name.startswith(("ops/", "models/")) or name == "engine/gemm.py"


@pytest.mark.parametrize("name", SOURCES)
def test_names_and_keywords_exist_in_cupy(name):
    complaints = Uses(SOURCES[name], table()).complaints
    if not device_code(name):
        complaints = [c for c in complaints if "cupy.ndarray." not in c]
    assert not complaints, "\n".join(complaints)


def test_the_walk_sees_what_the_library_uses():
    names = set().union(*(Uses(text, table()).names for text in SOURCES.values()))
    assert {
        "sum",
        "cuda.cublas.gemmStridedBatchedEx",
        "ElementwiseKernel",
        "cuda.Device.use",
        "cuda.is_available",
    } <= names


@pytest.mark.parametrize(
    "bad",
    [
        "xp.vecdot(a, b)",
        "dev.xp.insert(a, 0, 1)",
        "self.dev.xp.sum(a, where=m)",
        "xp.exp(a, where=m)",
        "xp.add.reduce(a, where=m)",
        "xp.add.reduceall(a)",
        "a.take(i, mode='clip')",
        "u[..., 0].take(i, axis=-2, mode='clip')",
        "xp.exp(a).max(initial=0)",
        "xp.take_along_axis(a)",
        "xp.cuda.cublas.gemmStridedBatched(0)",
        "xp.cuda.cublas.gemmStridedBatchedEx(0, 1, 2)",
        "c = dev.xp.cuda.cublas\nc.gemm(0)",
        "cupy.cuda.Device(0).activate()",
        "cupy.cuda.Device(0).use(1)",
        "f = xp.block",
        "xp.errstate()",
    ],
)
def test_the_walk_finds_mistakes(bad):
    assert Uses(bad, table()).complaints


@pytest.mark.parametrize(
    "good",
    [
        "xp.sum(a, axis=0, out=b)",
        "xp.add.reduce(a, axis=-2, out=b)",
        "a.sum(axis=(-1, -2))",
        "xp.einsum('i,i', a, b)",
        "np.take(a, i, mode='clip')",
        "def f_host(a):\n    a.take(i, mode='clip')",
        "text.split(sep=',')",
        "xp.sum(*a, axis=0)",
        "cupy.cuda.Device(0).use()",
        "cupy.__version__",
    ],
)
def test_the_walk_lets_correct_code_pass(good):
    assert not Uses(good, table()).complaints


# -- where CuPy and NumPy may be named -------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(SOURCES) - GPU_FILES))
def test_only_the_device_layer_names_cupy(name):
    for node in ast.walk(ast.parse(SOURCES[name])):
        modules = (
            [a.name for a in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        )
        modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        modules += [node.id] if isinstance(node, ast.Name) else []
        assert not any(m.split(".")[0].startswith("cupy") for m in modules), (
            f"line {node.lineno} names cupy"
        )
    used = {n for n in Uses(SOURCES[name], table()).names if n.startswith("cuda")}
    assert not used, f"{sorted(used)} outside the device layer"


def numpy_calls(source: str):
    """Lines that use NumPy outside annotations and aliases of types, host classes and functions."""
    tree = ast.parse(source)
    allowed = set()
    for node in ast.walk(tree):
        skipped = []
        if isinstance(node, ast.arg | ast.AnnAssign):
            skipped = [node.annotation]
        elif isinstance(node, ast.FunctionDef):
            host = node.name in HOST_CODE or node.name.endswith("_host")
            skipped = [node] if host else [node.returns]
        elif isinstance(node, ast.ClassDef):
            skipped = [node] if node.name in HOST_CLASSES else []
        elif node in tree.body and is_alias(node):
            skipped = [node]
        allowed.update(id(n) for s in skipped if s is not None for n in ast.walk(s))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "numpy":
            yield node.lineno
        if isinstance(node, ast.Name) and node.id in ("np", "numpy") and id(node) not in allowed:
            yield node.lineno


def is_alias(node) -> bool:
    """Edit = Callable[[Array, np.ndarray], None]"""
    value = getattr(node, "value", None)
    return isinstance(value, ast.Subscript) and isinstance(value.value, ast.Name)


def test_host_classes_exist():
    defined = set(re.findall(r"^class (\w+)", "\n".join(SOURCES.values()), re.MULTILINE))
    assert set(HOST_CLASSES) <= defined


@pytest.mark.parametrize("name", [n for n in SOURCES if n.startswith(("ops/", "models/"))])
def test_operations_and_models_leave_numpy_alone(name):
    assert not list(numpy_calls(SOURCES[name])), "NumPy on what may be device data: use dev.xp"


def test_numpy_calls_are_found():
    assert list(
        numpy_calls(
            "import numpy as np\ndef f(x: np.ndarray) -> np.ndarray:\n    return np.exp(x)\n"
        )
    ) == [3]
    assert list(numpy_calls("from numpy import exp\n")) == [1]
    assert list(numpy_calls("table = {'x': lambda a: np.exp(a)}\n")) == [1]
    assert not list(numpy_calls("Edit = Callable[[Array, np.ndarray], None]\n"))


# -- the table itself ------------------------------------------------------------------------------


def test_table_is_that_of_the_installed_cupy():
    """Of another version of CuPy only the names that the library uses are compared."""
    pytest.importorskip(
        "cupy", reason="CuPy is not installed: the table cannot be checked (this needs no GPU)"
    )
    stored, installed = json.loads(TABLE.read_text()), collect()
    if stored["cupy"] == installed["cupy"]:
        assert stored == installed, "run: python tests/test_cupy_api.py --refresh"
        return
    for name, text in SOURCES.items():
        assert not [
            c
            for c in Uses(text, installed["names"]).complaints
            if "ndarray" not in c or device_code(name)
        ]
