"""Signal propagation: theory at infinite width, Jacobians of networks, tuning to criticality."""

from .torch_modules import torch_apjn as torch_apjn
from .torch_modules import torch_autoinit as torch_autoinit
