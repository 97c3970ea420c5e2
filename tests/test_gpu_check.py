"""gpu_check.py on the strict fake: every part runs, and every part can fail."""

import contextlib
import copy
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import time
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import fakecupy
import fakegpu
import pytest
import test_benchmark
import test_kernels

EXAMPLES = Path(__file__).parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))
import _gpu_long as long  # noqa: E402
import _gpu_numbers as numbers  # noqa: E402
import _gpu_parts as parts  # noqa: E402
import _gpu_rows as rows  # noqa: E402
import _gpu_runs as runs  # noqa: E402
import _gpu_tables as tables  # noqa: E402
import _gpu_times as times  # noqa: E402
import gpu_check  # noqa: E402

from tinygrok.audit.case import cpu_device  # noqa: E402
from tinygrok.engine import gemm, kernels, optim, row_kernels  # noqa: E402
from tinygrok.ops import linear  # noqa: E402
from tinygrok.training.ensembles import build  # noqa: E402

HELPERS = [numbers, parts, runs, times]
QUICKLY = ("products", "resume", "times", "profile", "operations")  # minutes else
compiled = pytest.mark.skipif(fakecupy.COMPILER is None, reason="CUDA bodies need a C++ compiler")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="as the machines with GPUs")


def small(name):
    kind = name.removesuffix("-small")
    return partial(test_benchmark.FUNCTIONS[kind], **test_benchmark.SMALL[kind])


@pytest.fixture(autouse=True)
def _gpu(monkeypatch):
    """The fake is CuPy, and the benchmark's workloads are small."""
    set_attribute = partial(monkeypatch.setattr, raising=False)
    fakegpu.install(set_attribute, partial(monkeypatch.setitem, sys.modules))
    workloads = {name: small(name) for name in runs.WORKLOADS}
    for module in (runs, times):
        monkeypatch.setattr(module, "WORKLOADS", workloads)
        monkeypatch.setattr(module, "ARGS", SimpleNamespace(p=11, width=8, seed=0, only="x"))
    monkeypatch.setattr(times, "COMPARED", SimpleNamespace(p=11, width=8, seed=0, only=None))
    monkeypatch.setattr(times, "with_torch", lambda: False)


def make(dtype, tf32=False):
    dev = fakecupy.fake_device(dtype)
    dev.tf32 = tf32
    return dev


def failures(found):
    return [row["check"] for row in found if rows.failed(row)]


def part(name, quick=False):
    found = list(parts.rows(name, make, quick))
    json.dumps(found, default=str)
    assert found
    return found


# -- every part passes on the fake -----------------------------------------------------------------


@pytest.mark.slow
@compiled
@pytest.mark.parametrize("name", parts.PARTS)
def test_part_passes(name, monkeypatch):
    monkeypatch.setattr(times, "REPEATS", 1)
    monkeypatch.setattr(runs, "STEPS", 5)
    assert not failures(part(name, quick=name in QUICKLY))


@pytest.mark.parametrize("name", ["versions", "compiled"])
def test_part_without_numbers(name):
    assert all(row["passed"] is None for row in part(name))


def test_all_parts_end_in_time():
    """Under nine minutes, whatever they do; and each has a function of its name."""
    assert sum(p.seconds for p in parts.PARTS.values()) <= 9 * 60 - 10
    for name, p in parts.PARTS.items():
        function = getattr(importlib.import_module(p.module), name)
        assert list(inspect.signature(function).parameters) == ["make", "quick"]


# -- numbers ---------------------------------------------------------------------------------------


def devices():
    return make("float64"), make("float32")


def broken(name, old, new):
    """A copy of a kernel with another line of CUDA; the registry keeps the right one."""
    kernel = copy.copy(kernels.KERNELS[name])
    assert old in kernel.cuda
    vars(kernel)["cuda"] = kernel.cuda.replace(old, new)
    return kernel


@compiled
def test_a_wrong_kernel_is_reported(monkeypatch):
    assert numbers.of_kernel("tanh_df", devices())["passed"]
    wrong = broken("tanh_df", "T(1) - t * t", "T(1) - t")
    monkeypatch.setattr(numbers, "KERNELS", {"tanh_df": wrong})
    assert failures(part("kernels")) == ["tanh_df"]


@compiled
def test_a_kernel_that_does_not_compile_is_reported(monkeypatch):
    wrong = broken("tanh_df", "T(1) - t * t", "T(1) - s * s")
    monkeypatch.setattr(numbers, "KERNELS", {"tanh_df": wrong, "relu": kernels.KERNELS["relu"]})
    first, second = part("kernels")
    assert first["passed"] is False
    assert "compile" in first["error"]
    assert second["passed"]


def test_the_kernels_are_those_of_the_registry(monkeypatch):
    """A new one is checked, and one without arguments is a failure."""
    few = {"square": kernels.KERNELS["square"], "new": kernels.KERNELS["relu"]}
    monkeypatch.setattr(numbers, "KERNELS", few)
    first, second = part("kernels")
    assert first["passed"]
    assert "no arguments" in second["error"]
    assert {name for name, _ in test_kernels.CASES} == set(kernels.KERNELS)


@compiled
def test_a_wrong_kernel_of_embeddings_is_seen_by_the_audit(monkeypatch):
    case = numbers.BUILDERS["embedding pair"]("embedding pair")
    assert numbers.of_case(case, devices())["passed"]
    monkeypatch.setattr(row_kernels, "gather_sum", broken("gather_sum", "s < S", "s < S - 1"))
    assert not numbers.of_case(case, devices())["passed"]


def test_a_gradient_that_is_not_written_is_seen_by_the_audit(monkeypatch):
    case = numbers.BUILDERS["linear"]("linear")
    assert numbers.of_case(case, devices())["passed"]
    wrong = partial(linear.linear_backward)
    case.source = (case.source[0], lambda dev, dy, cache, dw, db: wrong(dev, dy, cache, dw, None))
    assert numbers.of_case(case, devices())["float64"] == float("inf")


def product_rows(monkeypatch, leads=("none", "members")):
    monkeypatch.setattr(numbers.layouts, "LEADS", {k: numbers.layouts.LEADS[k] for k in leads})
    monkeypatch.setattr(numbers.layouts, "LAYOUTS", [numbers.layouts.transposed])
    monkeypatch.setattr(numbers, "LARGE", (16, 32, 8))
    modes = {"float64": make("float64"), "float32": make("float32")}
    return modes | {"tf32": make("float32", tf32=True)}


def test_a_wrong_stride_is_reported(monkeypatch):
    modes = product_rows(monkeypatch)
    plain = (numbers.layouts.contiguous,) * 2
    way = (modes, ["members"], [(*plain, None)])
    assert numbers.of_products(*way)["passed"]
    monkeypatch.setattr(gemm, "_batch_stride", lambda x, batch: 0 if len(batch) == 0 else 1)
    row = rows.checked("members", numbers.of_products, *way)
    assert row["passed"] is False


@pytest.mark.parametrize("name", ["COMPUTE_32F", "COMPUTE_32F_FAST_TF32"])
def test_tf32_where_it_is_not_asked_for_and_none_where_it_is(name, monkeypatch):
    modes = product_rows(monkeypatch)
    assert numbers.rounds(modes)["passed"]
    other = {68: 77, 77: 68}[getattr(gemm, name)]
    monkeypatch.setattr(gemm, name, other)
    assert not numbers.rounds(modes)["passed"]


@pytest.mark.parametrize(
    ("found", "expected", "error"),
    [
        ([1, 2], [1, 2], 0),
        ([1, 2.5], [1, 2], 0.25),
        ([1], [1, 1], "inf"),
        (["nan"], [1], "inf"),
        ([1, "nan"], [1, "nan"], "inf"),
        ([1, "-inf"], [1, "-inf"], 0),
        ([1.5, "-inf"], [1, "-inf"], 0.5),
        ([1, "inf"], [1, "-inf"], "inf"),
        ([], [], 0),
    ],
)
def test_gap(found, expected, error):
    np = numbers.np
    assert rows.gap(np.array(found, float), np.array(expected, float)) == float(error)


# -- runs ------------------------------------------------------------------------------------------


def few_members():
    return [point | {"p": 7, "width": 6} for point in runs.POINTS[:2]]


@compiled
def test_a_member_that_gets_anothers_rate_is_reported(monkeypatch):
    assert runs.of_members(devices(), few_members(), 3)["passed"]
    one_for_all = lambda self, value: float(value.flat[0]) if hasattr(value, "flat") else value  # noqa: E731
    monkeypatch.setattr(optim.Optimizer, "_member", one_for_all)
    assert not runs.of_members(devices(), few_members(), 3)["passed"]


@compiled
def test_a_run_that_forgets_its_moments_is_reported(monkeypatch):
    fresh = partial(build, make("float32"), few_members())
    assert runs.of_resume(fresh, 2)["passed"]
    right = runs.load_training

    def forgetful(path, run, config):
        right(path, run, config)
        run.optimizer.state["m"].flat[...] = 0

    monkeypatch.setattr(runs, "load_training", forgetful)
    row = runs.of_resume(fresh, 2)
    assert row["repeated"]
    assert row["passed"] is False


def steps_with(monkeypatch, extra):
    """The row of a step that does something more."""
    dev = make("float32")
    x = dev.zeros((4,))
    monkeypatch.setitem(runs.WORKLOADS, "x", lambda *_: {"tinygrok": lambda: partial(extra, x)})
    return rows.checked("x", runs.of_steps, dev, "x")


def test_clean_steps_pass(monkeypatch):
    row = steps_with(monkeypatch, lambda x: x * 2)
    assert row["passed"]
    assert row["arrays a step, from the pool"] == 1
    assert not any(row[name] for name in ("cudaMalloc", "copies to the host", "waited"))


def test_a_step_that_reads_is_reported(monkeypatch):
    row = steps_with(monkeypatch, lambda x: x.get())
    assert row["copies to the host"] == runs.WARM
    assert row["passed"] is False
    assert not isinstance(fakecupy.ndarray.get, partial)
    assert fakecupy.ndarray.get.__name__ == "get"  # put back


@pytest.mark.parametrize("wait", [lambda x: float(x.sum()), lambda x: x[x > 0]])
def test_a_step_that_waits_is_reported(wait, monkeypatch):
    row = steps_with(monkeypatch, wait)
    assert row["waited"]
    assert row["passed"] is False


def test_a_step_that_takes_more_memory_each_time_is_reported(monkeypatch):
    kept = []
    row = steps_with(monkeypatch, lambda x: kept.append(x + 1))
    assert row["cudaMalloc"] == 1
    assert row["passed"] is False


def test_memory_that_an_earlier_check_left_free_hides_nothing(monkeypatch):
    dev = make("float32")
    large = dev.zeros((1000,))
    with runs.allocations(dev):
        pass
    del large
    kept = []
    row = steps_with(monkeypatch, lambda x: kept.append(x + 1))
    assert row["cudaMalloc"] == 1


# -- times -----------------------------------------------------------------------------------------


def test_times_of_a_small_step(monkeypatch):
    row = times.of_times(make("float32", tf32=True), "mlp", 1)
    assert row["passed"]
    assert row["tinygrok"] > 0
    assert row["to products"] == row["tinygrok"] / row["products"]
    assert row["torch"] is None


def test_a_twin_that_cannot_be_made_is_reported(monkeypatch):
    """And one that can be is timed."""

    def fails():
        raise AssertionError("gradient W differs from PyTorch's by 3e-1")

    def sleeps():
        return lambda: time.sleep(0.002)

    def workload(args, dev, twins):
        candidates = {"tinygrok": sleeps, "torch eager": fails, "torch other": sleeps}
        return candidates | {"torch compiled": fails}

    monkeypatch.setattr(times, "WORKLOADS", {"x": workload})
    monkeypatch.setattr(times, "graph", lambda maker: maker())
    row = times.of_times(make("float32"), "x", 1)
    assert row["error"] == "torch eager: AssertionError: gradient W differs from PyTorch's by 3e-1"
    assert row["passed"] is False
    assert row["to torch"] == row["tinygrok"] / row["torch"]
    assert row["to graph"] == row["tinygrok"] / row["torch graph"]


def test_profile_of_a_small_step():
    row = times.of_profile(make("float32"), "mlp")
    assert row["ms of the host"] > 0
    assert row["bound by"] in ("launches", "kernels")


@pytest.mark.parametrize("name", ["steps", "profile", "operations", "times"])
def test_a_workload_that_cannot_be_made_is_reported(name, monkeypatch):
    """And the next one is measured."""

    def fails(*_):
        raise MemoryError("out of memory")

    monkeypatch.setattr(times, "REPEATS", 1)
    for module in (runs, times):
        monkeypatch.setattr(module, "WORKLOADS", {"mlp": fails, "optimizer": small("optimizer")})
    first, *others = [row for row in part(name) if row["check"] != "mlp, TF32"]
    assert first["passed"] is False
    assert "out of memory" in first["error"]
    assert others
    assert not failures(others)


@compiled
def test_the_slowest_operation_is_found(monkeypatch):
    right = fakecupy.cuda.cublas.gemmStridedBatchedEx

    def slow(*args):
        time.sleep(0.05)
        right(*args)

    monkeypatch.setattr(fakecupy.cuda.cublas, "gemmStridedBatchedEx", slow)
    monkeypatch.setattr(times, "LARGEST", 100)
    everything, *found = times.of_operations(make("float32"), "mlp")
    assert everything["share"] == 1
    assert found[0]["check"] == "mlp: products"
    assert found[0]["calls"] == 3
    names = {row["check"] for row in found}
    assert {"mlp: kernel adamw", "mlp: kernel gather_sum"} <= names
    assert abs(sum(row["share"] for row in found) - 1) < 1e-9
    assert sys.getprofile() is None


@pytest.mark.slow
@pytest.mark.torch
def test_twins_are_timed_and_captured(monkeypatch):
    """On the CPU, where capturing is played by calling: the graph replays a capturable AdamW."""
    torch = pytest.importorskip("torch")
    seen = []
    right = torch.optim.AdamW
    assert "capturable" in inspect.signature(right).parameters

    def optimizer(parameters, **options):
        seen.append(options.pop("capturable", False))
        return right(parameters, **options)

    def nothing(*_):
        return SimpleNamespace(wait_stream=lambda other: None, replay=lambda: time.sleep(0.001))

    monkeypatch.setattr(torch.optim, "AdamW", optimizer)
    for name in ("Stream", "current_stream", "CUDAGraph"):
        monkeypatch.setattr(torch.cuda, name, nothing)
    for name in ("stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, contextlib.nullcontext)
    monkeypatch.setattr(times, "with_torch", lambda: True)
    row = times.of_times(cpu_device("float32"), "mlp", 1)
    assert row["passed"], row
    assert seen == [False, False, True]  # one-hot, embedding, and the first one captured
    assert row["torch"] > 0
    assert row["torch graph"] > 0.9  # ms
    monkeypatch.setattr(torch, "compile", lambda function: function)
    assert times.of_compiled(cpu_device("float32"), "mlp")["torch compiled"] > 0


@pytest.mark.slow
@pytest.mark.torch
def test_launches_are_what_the_profiler_saw_on_the_device(monkeypatch):
    torch = pytest.importorskip("torch")
    kinds = torch.autograd.DeviceType
    events = [SimpleNamespace(device_type=kind) for kind in (kinds.CUDA, kinds.CPU, kinds.CUDA)]

    @contextlib.contextmanager
    def profile(activities):
        assert activities == [torch.profiler.ProfilerActivity.CUDA]
        yield SimpleNamespace(events=lambda: events)

    monkeypatch.setattr(torch.profiler, "profile", profile)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(times, "with_torch", lambda: True)
    assert times.launches(lambda: None) == 2


# -- the real CuPy: names, and the kernel that holds the GPU ---------------------------------------


def test_names_exist_in_cupy(monkeypatch):
    monkeypatch.undo()
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed (this needs no GPU)")
    profiler = importlib.import_module("cupyx.profiler")
    names = set()
    for module in HELPERS:
        names |= set(re.findall(r"(?:dev\.xp|\bcupy)\.([\w.]+)", Path(module.__file__).read_text()))
        names |= {f"cuda.{n}" for n in re.findall(r"\bcuda\.([\w.]+)", inspect.getsource(parts))}
    for name in sorted(names):
        owner = cupy
        for word in name.split(".") if "cublas" not in name else ():  # its library is not here
            owner = getattr(owner, word)
    assert {"cuda.MemoryHook", "cuda.get_elapsed_time", "cuda.runtime.deviceSynchronize"} <= names
    call = {"n_repeat": 20, "n_warmup": 3, "name": "x", "max_duration": 5}
    inspect.signature(profiler.benchmark).bind(print, **call)
    own = cupy.ndarray.get
    with runs.copies(SimpleNamespace(xp=cupy)):
        assert cupy.ndarray.get is not own
    assert cupy.ndarray.get is own
    with runs.allocations(SimpleNamespace(xp=cupy)) as counts:
        assert counts == {"device": 0, "pool": 0}


@pytest.mark.skipif(test_kernels.NVRTC is None, reason="libnvrtc is not installed")
@pytest.mark.parametrize("ctype", ["float", "double"])
def test_nvrtc_compiles_the_kernel_that_holds_the_gpu(ctype):
    kernel = SimpleNamespace(name="hold", inputs="int64 nanoseconds", outputs="T done", preamble="")
    kernel.cuda = runs.HOLD
    assert test_kernels.nvrtc_log(test_kernels.cuda_source(kernel, ctype), 80) is None
    kernel.cuda = runs.HOLD.replace("now - first", "now - last")
    assert "undefined" in test_kernels.nvrtc_log(test_kernels.cuda_source(kernel, ctype), 80)


# -- processes, limits, reports --------------------------------------------------------------------


def script(text):
    return [sys.executable, "-c", text]


def outcome(monkeypatch, text, seconds=30):
    """Of the part `versions` whose process is another."""
    monkeypatch.setattr(gpu_check, "words_of", lambda name, args, out, rows: [*script(text), rows])
    only = {"versions": parts.PARTS["versions"]._replace(seconds=seconds)}
    monkeypatch.setattr(gpu_check, "PARTS", only)
    args = gpu_check.arguments(["--only", "versions"])
    return gpu_check.one("versions", args, Path("nowhere"))


WRITES = 'import sys, time, os; open(sys.argv[1], \'w\').write(\'{"check": "x", "passed": %s}\\n\')'


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        (WRITES % "true", "passed"),
        (WRITES % "null", "passed"),
        (WRITES % "false", "failed"),
        (WRITES % "true" + "; sys.exit(3)", "exit code 3"),
        (WRITES % "true" + "; os.kill(os.getpid(), 11)", "exit code -11"),
        ("pass", "no rows"),
    ],
)
def test_verdicts(text, verdict, monkeypatch):
    part, _ = outcome(monkeypatch, text)
    assert part["verdict"] == verdict
    assert gpu_check.good(part) == (verdict == "passed")


@pytest.mark.slow
def test_a_part_that_hangs_is_ended_and_its_rows_are_kept(monkeypatch):
    text = WRITES % "true" + "; print('so far', flush=True)"
    text += "; open(sys.argv[1], 'a').write('{\"check\": \"half a'); time.sleep(60)"
    began = time.perf_counter()
    part, printed = outcome(monkeypatch, text, seconds=2)
    assert time.perf_counter() - began < 20
    assert part["verdict"] == "time limit"
    assert part["rows"] == [{"check": "x", "passed": True}]
    assert printed == "so far\n"


def test_a_compiler_that_takes_too_long_is_no_failure():
    assert gpu_check.good({"verdict": gpu_check.verdict("compiled", None, [])})
    assert not gpu_check.good({"verdict": gpu_check.verdict("times", None, [])})
    wrong = [{"check": "mlp", "passed": False}]
    assert not gpu_check.good({"verdict": gpu_check.verdict("compiled", None, wrong)})


@pytest.mark.slow
def test_a_long_part_is_interrupted_and_goes_on(monkeypatch, tmp_path):
    """It gets Ctrl-C; the next call finds its state, and resumes."""
    saves = f"""
import pathlib, time
try:
    time.sleep(60)
except KeyboardInterrupt:
    pathlib.Path({str(tmp_path)!r}, "in-context").mkdir()
    pathlib.Path({str(tmp_path)!r}, "in-context", "checkpoint.npz").touch()
"""
    right = gpu_check.words_of
    monkeypatch.setattr(gpu_check, "words_of", lambda *_: script(saves))
    monkeypatch.setattr(gpu_check, "LIMIT", 2)
    args = gpu_check.arguments(["--only", "in-context"])
    part, _ = gpu_check.one("in-context", args, tmp_path)
    assert part["verdict"].startswith("interrupted")
    assert gpu_check.good(part)
    assert "--resume" in right("in-context", args, tmp_path, "rows")
    assert "--resume" not in right("in-context", args, tmp_path / "other", "rows")


def test_numbers_of_a_long_part_are_reported(monkeypatch, tmp_path):
    """Of a run that has ended by itself."""
    text = '{"results": {"tokens_per_second": 5.5, "accuracy_by_context": [0.5]}}'
    (tmp_path / "two-to-32").mkdir()
    (tmp_path / "two-to-32/run.json").write_text(text)
    args = gpu_check.arguments(["--only", "two-to-32"])
    for end, count in (("", 1), ("raise SystemExit(2)", 0)):
        monkeypatch.setattr(gpu_check, "words_of", lambda *_, end=end: script(end))
        part, _ = gpu_check.one("two-to-32", args, tmp_path)
        assert gpu_check.good(part) == (not end)
        assert len(part["rows"]) == count
    assert long.results(tmp_path / "two-to-32")[0]["value"] == 5.5
    assert long.results(tmp_path) == []
    assert long.command("suite", "cuda", tmp_path)[-1] == str(EXAMPLES.parent / "tests")


@pytest.mark.parametrize("name", [n for n, p in long.LONG.items() if ".py" in p.words])
def test_the_flags_of_the_long_parts_are_taken(name):
    example, *flags = long.command(name, "cuda", Path("x"))[1:]
    assert flags[-4:] == ["--device", "cuda", "--out", f"x/{name}"]
    args = importlib.import_module(Path(example).stem).arguments(flags)
    assert args.device == "cuda"


def test_report():
    found = [{"check": "a", "float64": 1e-20, "passed": True}]
    found += [{"check": "b", "passed": False, "error": "OutOfMemory: a|b"}] * 7
    part = {"verdict": "failed", "seconds": 1.5, "rows": found}
    text = tables.markdown(make("float32"), {"kernels": part})
    assert "| kernels | failed | 1.5 | every fused kernel" in text
    assert "| a | 1e-20 | - | ok |" in text
    assert "| b | - | OutOfMemory: a\\|b | FAILED |" in text
    lines = tables.summary("kernels", part).splitlines()
    assert "8 checks, 7 failed" in lines[0]
    assert lines[1] == "    b: OutOfMemory: a|b"
    assert lines[-1] == "    and 2 more"


def run(*flags, fake=None, cwd):
    """The example as a user runs it; fake: a folder for a module cupy that is the fake."""
    paths = [str(EXAMPLES.parent), *([str(fake), str(Path(__file__).parent)] if fake else [])]
    if fake:
        Path(fake, "cupy.py").write_text("import fakegpu\n\nfakegpu.install()\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    words = [sys.executable, str(EXAMPLES / "gpu_check.py"), *flags]
    return subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--only", "kernels"],
        ["--device", "cuda:1"],
        ["--device", "cpu"],
        ["--device", "auto"],
        ["--only", "x"],
        ["--only"],
        ["--long", "--only", "kernels"],
        ["--long", "--quick"],
        ["--quick", "--only", "in-context"],
        ["--list", "--quick"],
        ["--tf32"],
    ],
)
def test_refusals(flags, tmp_path, monkeypatch, capsys):
    """Without a GPU, or with flags that make no sense: one line, and nothing is written."""
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", *flags])
    with pytest.raises(SystemExit) as leaving:
        gpu_check.cli.main(gpu_check.main)
    assert leaving.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_without_a_gpu_it_says_what_it_needs(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(gpu_check.cli.InputError, match="needs CuPy and one: CuPy is not installed"):
        gpu_check.main([])


def test_list(capsys):
    assert gpu_check.main(["--list"]) is None
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*parts.PARTS, *long.LONG))


@pytest.mark.slow
@compiled
def test_from_the_command_line(tmp_path):
    """On the fake, in processes of their own; then with a part that fails."""
    fake = tmp_path / "fake"
    fake.mkdir()
    flags = ["--quick", "--only", "versions", "kernels", "--out", "out"]
    done = run(*flags, fake=fake, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    written = json.loads((tmp_path / "out/run.json").read_text())["results"]
    assert written["failed"] == []
    found = written["parts"]["kernels"]["rows"]
    assert {row["check"] for row in list(islice(found, 1000))} == set(kernels.KERNELS)
    assert "| tanh |" in (tmp_path / "out/gpu_check.md").read_text()
    (tmp_path / "broken").mkdir()
    wrong = "import fakegpu\n\nfakegpu.install()\nfakegpu.fakecupy.ElementwiseKernel = None\n"
    (fake / "cupy.py").write_text(wrong)
    environment = os.environ | {"PYTHONPATH": f"{fake}:{Path(__file__).parent}:{EXAMPLES.parent}"}
    words = [sys.executable, str(EXAMPLES / "gpu_check.py"), *flags]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "failed" in done.stdout
    assert (tmp_path / "out/earlier-1/gpu_check.md").exists()
