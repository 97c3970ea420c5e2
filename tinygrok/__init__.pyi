"""The public names for type checkers: those that __init__.py loads on first use."""

from .analytic.addition import addition_weights as addition_weights
from .analytic.multiplication import multiplication_weights as multiplication_weights
from .analytic.polynomial import PolynomialNetwork as PolynomialNetwork
from .analytic.verify import verify as verify
from .audit import audit as audit
from .audit import cases as _cases
from .criticality import torch_apjn as torch_apjn
from .criticality import torch_autoinit as torch_autoinit
from .criticality.autoinit import autoinit as autoinit
from .criticality.jacobian import Propagation as Propagation
from .criticality.meanfield import MeanField as MeanField
from .criticality.meanfield import critical_line as critical_line
from .criticality.meanfield import critical_point as critical_point
from .engine.device import Device as Device
from .engine.device import get_device as get_device
from .engine.errors import InputError as InputError
from .engine.kernels import ACTIVATIONS as ACTIVATIONS
from .engine.optim import OPTIMIZERS as OPTIMIZERS
from .engine.optim import SGD as SGD
from .engine.optim import AdamW as AdamW
from .engine.params import Arena as Arena
from .engine.rng import generator as generator
from .models.chain import Chain as Chain
from .models.gpt import GPT as GPT
from .models.inspect import Decoder as Decoder
from .models.inspect import run_with_tape as run_with_tape
from .models.interop import from_torch_state_dict as from_torch_state_dict
from .models.interop import to_torch_state_dict as to_torch_state_dict
from .models.mlp import TwoLayerNet as TwoLayerNet
from .models.pairs import PairTransformer as PairTransformer
from .models.pairs import ThreeLayerNet as ThreeLayerNet
from .models.tokens import Tokens as Tokens
from .models.vision import deep_mlp as deep_mlp
from .models.vision import mixer as mixer
from .models.vision import resmlp as resmlp
from .models.vision import resnet as resnet
from .models.vision import vgg as vgg
from .models.vision import vit as vit
from .ops.loss import LOSSES as LOSSES
from .probes.fourier import ipr as ipr
from .probes.fourier import neuron_ipr as neuron_ipr
from .probes.fourier import spectrum as spectrum
from .probes.phases import phase as phase
from .tasks import TASKS as TASKS
from .tasks.corruption import corrupt as corrupt
from .tasks.groups import composition as composition
from .tasks.images import load as _load
from .tasks.in_context import InContextData as InContextData
from .tasks.lcg import fixed_modulus as fixed_modulus
from .tasks.lcg import unseen_modulus as unseen_modulus
from .tasks.modular import ModularTask as ModularTask
from .tasks.modular import addition as addition
from .tasks.modular import division as division
from .tasks.modular import multiplication as multiplication
from .tasks.modular import polynomial as polynomial
from .tasks.modular import subtraction as subtraction
from .training.checkpoint import load_training as load_training
from .training.checkpoint import save_training as save_training
from .training.images import ImageTraining as ImageTraining
from .training.sequences import SequenceTraining as SequenceTraining
from .training.sweep import sweep as sweep
from .training.tables import Training as Training

__version__: str
audit_cases = _cases
load_images = _load
