"""The auditor passes every case at the stated tolerance, and catches every planted error."""

import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tinygrok.ops as ops_package
from tinygrok.audit.cases import BUILDERS, cases
from tinygrok.audit.checker import COMPLEX_TOLERANCE, TOLERANCE, audit, table
from tinygrok.engine import kernels
from tinygrok.ops import activation, dropout, embedding, linear, loss, norm, reference


@pytest.mark.parametrize("name", BUILDERS)
def test_case_passes(name):
    rows = audit(BUILDERS[name](name))
    assert rows
    assert all(r.passed for r in rows), "\n" + table(rows)
    assert TOLERANCE == 1e-7
    assert COMPLEX_TOLERANCE == 1e-12


def test_every_backward_is_audited():
    """A new public backward without a case fails here; tests/test_reference.py holds the plain
    versions of ops/reference.py to those that are audited."""
    import importlib
    import pkgutil

    backwards = set()
    for module in pkgutil.iter_modules(ops_package.__path__):
        if module.name == "reference":
            continue
        module = importlib.import_module(f"tinygrok.ops.{module.name}")
        for name, f in inspect.getmembers(module, inspect.isfunction):
            if name.endswith("_backward") and f.__module__ == module.__name__:
                assert hasattr(module, name.replace("_backward", "_forward")), (
                    f"{name} has no forward beside it"
                )
                backwards.add(f)
    audited = {f for case in cases() for f in case.source}
    assert backwards
    assert backwards <= audited, backwards - audited


# -- deliberately wrong backwards: (case, module, function, wrong version of it) -------------------


def _linear_transposed(
    right, dev, dy, cache, dw=None, db=None, dx=None, need_dx=True, accumulate=False
):
    result = right(dev, dy, cache, dw, db, dx, need_dx)
    dw[:] = dw[..., ::-1, :].copy()
    return result


def _linear_accumulates(
    right, dev, dy, cache, dw=None, db=None, dx=None, need_dx=True, accumulate=False
):
    before = dw.copy()
    result = right(dev, dy, cache, dw, db, dx, need_dx)
    dw += before
    return result


def _linear_bias_column(
    right, dev, dy, cache, dw=None, db=None, dx=None, need_dx=True, accumulate=False
):
    result = right(dev, dy, cache, dw, db, dx, need_dx)
    db[..., 0] *= 1.01
    return result


def _linear_mean_bias(
    right, dev, dy, cache, dw=None, db=None, dx=None, need_dx=True, accumulate=False
):
    result = right(dev, dy, cache, dw, db, dx, need_dx)
    db /= dy.shape[-2]
    return result


def _linear_sign(right, dev, dy, cache, dw=None, db=None, dx=None, need_dx=True, accumulate=False):
    return np.negative(right(dev, dy, cache, dw, db, dx, need_dx), out=dx)


def _embedding_last_wins(right, dev, dh, cache, du, accumulate=False):
    """a[idx] = v instead of a sum: the classic mistake of scatter"""
    du.fill(0)
    for s, index in enumerate(cache[0].host):
        du[..., s, index, :] = dh


def _embedding_shifted(right, dev, dh, cache, du, accumulate=False):
    right(dev, dh, cache, du)
    du[:] = np.roll(du, 1, axis=-2)


def _embedding_first_table_only(right, dev, dh, cache, du, accumulate=False):
    right(dev, dh, cache, du)
    du[..., 1, :, :] = du[..., 0, :, :]


def _activation_missing_factor(right, dev, dy, cache, dx=None):
    return 0.5 * right(dev, dy, cache, dx)


def _activation_no_cotangent(right, dev, dy, cache, dx=None):
    return right(dev, np.ones_like(dy), cache, dx)


def _gelu_as_tanh(right, dev, dy, cache, dx=None):
    """The derivative of the tanh approximation for the exact GELU: wrong by 1e-4, too little for
    loose tolerances"""
    return right(dev, dy, (cache[0], "gelu_tanh"), dx)


def _dropout_forgets_scale(right, dev, dy, cache, dx=None):
    return dy * (cache[0] != 0)


def _dropout_stale_mask(right, dev, dy, cache, dx=None):
    return dy * np.roll(cache[0], 1, axis=-1)


def _batchnorm_eval_formula(right, dev, dy, cache, dgain, dshift):
    xhat, rstd, gain, _ = cache
    return right(dev, dy, (xhat, rstd, gain, None), dgain, dshift)


def _batchnorm_unweighted(right, dev, dy, cache, dgain, dshift):
    xhat, rstd, gain, q = cache
    return right(dev, dy, (xhat, rstd, gain, np.full_like(q, 1 / xhat.shape[-2])), dgain, dshift)


def _batchnorm_swapped(right, dev, dy, cache, dgain, dshift):
    return right(dev, dy, cache, dshift, dgain)


def _layernorm_without_mean(right, dev, dy, cache, dgain, dshift=None):
    xhat, rstd, gain = cache
    right(dev, dy, cache, dgain, dshift)
    dxhat = dy * gain[..., None, :]
    return rstd * (dxhat - xhat * (dxhat * xhat).mean(axis=-1, keepdims=True))


def _layernorm_stale_gamma(right, dev, dy, cache, dgain, dshift=None):
    xhat, rstd, gain = cache
    return right(dev, dy, (xhat, rstd, np.ones_like(gain)), dgain, dshift)


def _softmax_diagonal_only(right, dev, dy, cache):
    (y,) = cache
    return dy * y * (1 - y)


def _mse_sum_over_classes(right, dev, dloss, cache, dlogits=None):
    return right(dev, dloss, cache, dlogits) * cache[0].shape[-1]


def _cross_entropy_off_by_one(right, dev, dloss, cache, dlogits=None):
    r, q = cache
    return right(dev, dloss, (np.roll(r, 1, axis=-1), q), dlogits)


def _loss_ignores_weights(right, dev, dloss, cache, dlogits=None):
    r, q = cache
    return right(dev, dloss, (r, np.full_like(q, q.mean())), dlogits)


MUTANTS = [
    ("linear", linear, "linear_backward", _linear_transposed),
    ("linear", linear, "linear_backward", _linear_accumulates),
    ("linear", linear, "linear_backward", _linear_bias_column),
    ("linear", linear, "linear_backward", _linear_mean_bias),
    ("linear", linear, "linear_backward", _linear_sign),
    ("embedding", embedding, "embedding_backward", _embedding_last_wins),
    ("embedding pair", embedding, "embedding_backward", _embedding_shifted),
    ("embedding pair", embedding, "embedding_backward", _embedding_first_table_only),
    ("activation square", activation, "activation_backward", _activation_missing_factor),
    ("activation tanh", activation, "activation_backward", _activation_no_cotangent),
    ("activation gelu", activation, "activation_backward", _gelu_as_tanh),
    ("dropout", dropout, "dropout_backward", _dropout_forgets_scale),
    ("dropout", dropout, "dropout_backward", _dropout_stale_mask),
    ("batchnorm train", norm, "batchnorm_backward", _batchnorm_eval_formula),
    ("batchnorm weighted", norm, "batchnorm_backward", _batchnorm_unweighted),
    ("batchnorm train", norm, "batchnorm_backward", _batchnorm_swapped),
    ("layernorm", norm, "layernorm_backward", _layernorm_without_mean),
    ("layernorm", norm, "layernorm_backward", _layernorm_stale_gamma),
    ("softmax", loss, "softmax_backward", _softmax_diagonal_only),
]
LOSS_MUTANTS = [
    ("mse", _mse_sum_over_classes),
    ("cross entropy", _cross_entropy_off_by_one),
    ("mse weighted", _loss_ignores_weights),
    ("cross entropy weighted", _loss_ignores_weights),
]


def caught(case: str) -> bool:
    return any(not r.passed for r in audit(BUILDERS[case](case)))


@pytest.mark.parametrize(
    ("case", "module", "name", "wrong"), MUTANTS, ids=[m[3].__name__.strip("_") for m in MUTANTS]
)
def test_wrong_backward_is_caught(monkeypatch, case, module, name, wrong):
    right = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *args, **kwargs: wrong(right, *args, **kwargs))
    assert caught(case)


@pytest.mark.parametrize(
    ("case", "wrong"),
    LOSS_MUTANTS,
    ids=[f"{m[0]}: {m[1].__name__.strip('_')}" for m in LOSS_MUTANTS],
)
def test_wrong_loss_is_caught(monkeypatch, case, wrong):
    kind = "mse" if case.startswith("mse") else "cross_entropy"
    forward, right = loss.LOSSES[kind]
    monkeypatch.setitem(loss.LOSSES, kind, (forward, lambda *a, **k: wrong(right, *a, **k)))
    assert caught(case)


@pytest.mark.parametrize("kind", sorted(kernels.ACTIVATIONS))
def test_wrong_kernels_are_caught(monkeypatch, kind):
    """A derivative off by one part in a million is seen in f' and, where there is one, in f''."""
    right = kernels.ACTIVATIONS[kind]
    label = "power3" if kind == "power" else kind

    class Off:
        def __init__(self, fused):
            self.fused = fused

        def __call__(self, dev, *args):
            self.fused(dev, *args)
            args[-1][...] *= 1 + 1e-6

    for which, case in (("df", f"activation {label}"), ("d2f", f"second {label}")):
        if case not in BUILDERS:
            continue
        wrong = dataclasses.replace(right, **{which: Off(getattr(right, which))})
        monkeypatch.setitem(kernels.ACTIVATIONS, kind, wrong)
        assert caught(case), (kind, which)
        monkeypatch.setitem(kernels.ACTIVATIONS, kind, right)


def test_a_gradient_that_changes_on_repetition_is_caught():
    case = BUILDERS["linear"]("linear")
    right, calls = case.backward, iter(range(10))
    case.backward = lambda t, v: {k: g * (1 + next(calls) * 1e-12) for k, g in right(t, v).items()}
    assert any(r.method == "shape, repeatability" for r in audit(case))


@pytest.mark.parametrize(
    "imports",
    [
        "import tinygrok.audit",
        "import tinygrok.audit.checker",
        "import tinygrok.audit.cases",
        "from tinygrok.audit.checker import audit; import tinygrok",
        "from tinygrok.audit import audit; import tinygrok, tinygrok.audit.cases",
    ],
)
def test_the_package_is_the_function_too(imports):
    """tinygrok.audit(case), and the names of the package, in every order of imports."""
    code = (
        f"{imports}\n"
        "from tinygrok.audit import Case, audit, cases, table\n"
        "(case,) = tinygrok.audit.cases('softmax')\n"
        "assert isinstance(case, Case)\n"
        "assert tinygrok.audit(case, seed=1) == audit(case, 1)\n"
        "assert tinygrok.audit.audit is tinygrok.audit.checker.audit is audit\n"
        "assert tinygrok.audit.cases is cases\n"
        "print(table(tinygrok.audit(case)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" ok") == 3


@pytest.mark.parametrize(
    ("operation", "plain", "shown"),
    [
        ("conv stride", ["conv_forward", "conv_backward"], "dw[u,v] = sum over b, i, j"),
        ("activation erf", [], "f'' = "),
        ("second tanh", [], "f'' = -2*tanh(x)*"),
        ("softmax", [], "softmax_backward\n    dx = "),
    ],
)
def test_an_operation_is_printed_with_its_plain_version(operation, plain, shown, tmp_path):
    """Of fast operations the source of ops/reference.py, of activations the line of the table."""
    example = Path(__file__).parent.parent / "examples" / "audit_gradients.py"
    command = [sys.executable, example, "--op", operation, "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout
    assert ("ops/reference.py" in done.stdout) == bool(plain)
    for name in plain:
        assert inspect.getsource(getattr(reference, name)).rstrip() in done.stdout
