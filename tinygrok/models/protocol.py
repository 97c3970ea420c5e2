"""What training, evaluation and the Jacobian studies ask of a network, and how a pass is made."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..engine.device import Array, Device

Shapes = dict[str, tuple[int, ...]]  # of arrays by name


class Mode(NamedTuple):
    """How a forward pass is made; a network reads what concerns it.

    train    BatchNorm takes and records the statistics of the batch
    dropout  (keys, rate) of a step (engine.rng.mask_keys); None: no dropout
    weight   (..., B) weights of the rows in BatchNorm's statistics; None: equal ones
    offset   the row of the batch at which a shard starts, for its dropout mask
    buffer   buffer(name, shape) supplies arrays: a workspace's get, or None: new ones
    """

    train: bool = False
    dropout: tuple | None = None
    weight: Array | None = None
    offset: int = 0
    buffer: Callable | None = None


EVALUATION = Mode()
TRAINING = Mode(train=True)


class Stage(NamedTuple):
    """A block as a map: forward (x -> y, cache) and backward (dy, cache -> dx)."""

    name: str
    forward: Callable
    backward: Callable


class Model(Protocol):
    """A network: names and shapes of its parameters, and the two passes.

    shapes      trained parameters of one network, by name
    buffers     state that training updates without a gradient, by name
    batchnorm   whether some BatchNorm needs all rows of a batch at once
    by_neurons  whether `neurons(arrays, part)` cuts it into networks whose logits add up
    """

    by_neurons: bool

    @property
    def shapes(self) -> Shapes: ...

    @property
    def buffers(self) -> Shapes: ...

    @property
    def batchnorm(self) -> bool: ...

    def init(self, rng: np.random.Generator) -> dict[str, np.ndarray]: ...

    def init_buffers(self) -> dict[str, np.ndarray]: ...

    def prepare(self, dev: Device, inputs: np.ndarray) -> Any:
        """Host inputs in the form that forward reads."""
        ...

    def forward(self, dev: Device, w: dict, inputs: Any, mode=EVALUATION) -> tuple[Array, dict]:
        """Logits, and the tape: what backward reads and what can be looked at, by name."""
        ...

    def backward(self, dev: Device, dlogits: Array, tape: dict, g: dict, accumulate=False) -> None:
        """Write the gradient of every parameter into g, or add to g."""
        ...

    def stages(self, dev: Device, w: dict) -> list[Stage]:
        """The blocks as maps, for Jacobians."""
        ...


class NeuronModel(Model, Protocol):
    """A network with `by_neurons`: the logits of parts of its neurons add up to its own."""

    width: int

    def neurons(self, arrays: dict, part: slice) -> dict:
        """Views of some neurons' parameters, gradients or buffers: a network of their own."""
        ...
