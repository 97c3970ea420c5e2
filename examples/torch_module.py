"""A PyTorch module of your own: Jacobian norms between its submodules, before and after AutoInit.

    python examples/torch_module.py

Write your module and its input into `mine`. PyTorch's own initialisation makes J = 1/6 of a linear
layer with ReLU; at J = 1 gradients neither vanish nor explode with depth.
"""

import math

from tinygrok import cli  # first: it sets up BLAS threads before NumPy loads
from tinygrok.criticality import torch_apjn, torch_autoinit


def mine(torch):
    """(module, input, names of submodules in the order in which they run): put yours here."""
    torch.manual_seed(0)
    nn = torch.nn
    layers = [nn.Sequential(nn.Linear(200, 200), nn.ReLU()) for _ in range(8)]
    net = nn.Sequential(nn.Linear(64, 200), *layers, nn.Linear(200, 10))
    return net, torch.randn(32, 64), [name for name, _ in net.named_children()]


def main():
    cli.bare_parser("torch_module", __doc__).parse_args()
    try:
        import torch
    except ImportError:
        raise cli.InputError("PyTorch is not installed: pip install torch") from None
    net, x, names = mine(torch)
    before = torch_apjn(net, x, names)
    torch_autoinit(net, x, names)
    after = torch_apjn(net, x, names)
    print("J (theory: 1)     before           after")
    for k, name in enumerate(names[1:]):
        pair = " -> ".join((names[k], name))
        values = "   ".join(f"{J[k]:6.3f} +- {error[k]:.3f}" for J, error in (before, after))
        print(f"{pair:12} {values}")
    whole = [math.prod(J) for J, _ in (before, after)]
    print("product       {:.2g}, after AutoInit {:.2g}".format(*whole))


if __name__ == "__main__":
    cli.main(main)
