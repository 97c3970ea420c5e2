"""tinygrok: grokking in NumPy and CuPy, every gradient written by hand.

    import tinygrok as tg

    task = tg.addition(97)
    net = tg.TwoLayerNet(p=97, width=500)
    run = tg.Training.on_task(net, task, fraction=0.5, seed=0, lr=0.01, weight_decay=5.0)
    history = run.fit(steps=100)
    print(history["test_accuracy"][-1])  # 1.0
    run.plot("grok.png")

The names below are loaded on first use: importing tinygrok loads not even NumPy. All else stands in
the modules: engine, ops, models, tasks, analytic, criticality, probes, training, audit, plots, cli.
"""

import importlib

__version__ = "0.1.0"

# The public names, by module; __init__.pyi tells type checkers the same.
_NAMES = {
    "engine.device": "Device get_device",
    "engine.errors": "InputError",
    "engine.kernels": "ACTIVATIONS",
    "engine.optim": "AdamW OPTIMIZERS SGD",
    "engine.params": "Arena",
    "engine.rng": "generator",
    "ops.loss": "LOSSES",
    "models.mlp": "TwoLayerNet",
    "models.gpt": "GPT",
    "models.pairs": "PairTransformer ThreeLayerNet",
    "models.tokens": "Tokens",
    "models.chain": "Chain",
    "models.vision": "deep_mlp mixer resmlp resnet vgg vit",
    "models.inspect": "Decoder run_with_tape",
    "models.interop": "from_torch_state_dict to_torch_state_dict",
    "tasks": "TASKS",
    "tasks.modular": "ModularTask addition division multiplication polynomial subtraction",
    "tasks.groups": "composition",
    "tasks.corruption": "corrupt",
    "tasks.in_context": "InContextData",
    "tasks.lcg": "fixed_modulus unseen_modulus",
    "tasks.images": "load_images",
    "analytic.addition": "addition_weights",
    "analytic.multiplication": "multiplication_weights",
    "analytic.polynomial": "PolynomialNetwork",
    "analytic.verify": "verify",
    "criticality": "torch_apjn torch_autoinit",
    "criticality.meanfield": "MeanField critical_line critical_point",
    "criticality.jacobian": "Propagation",
    "criticality.autoinit": "autoinit",
    "probes.fourier": "ipr neuron_ipr spectrum",
    "probes.phases": "phase",
    "training.tables": "Training",
    "training.sequences": "SequenceTraining",
    "training.images": "ImageTraining",
    "training.sweep": "sweep",
    "training.checkpoint": "load_training save_training",
    "audit": "audit audit_cases",
}
_IN_THEIR_MODULES = {"load_images": "load", "audit_cases": "cases"}

__all__ = sorted(" ".join(_NAMES.values()).split())


def __getattr__(name: str):
    """A public name, from its module on first use."""
    for module, names in _NAMES.items():
        if name in names.split():
            found = importlib.import_module(f"{__name__}.{module}")
            value = getattr(found, _IN_THEIR_MODULES.get(name, name))
            return globals().setdefault(name, value)  # importing bound the callable package audit
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
