"""The benchmark's decoder in PyTorch, with its fused attention, for benchmark.py."""

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from _torch_twins import BETAS, compared, decayed, setup, stepper

ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu}


class Decoder:
    """The forward pass of models.gpt.GPT on the weights w: tokens (B, T) -> logits (B, T', V).

    T' positions `at` have logits: those that carry loss."""

    def __init__(self, net, w, put, T, at):
        self.net = net
        self.w = w
        self.at = at
        head = net.width // net.heads
        rates = 10000.0 ** (-np.arange(0, head, 2) / head)
        angles = np.arange(T)[:, None] * rates
        self.cos = put(np.cos(angles))
        self.sin = put(np.sin(angles))
        self.number = put(np.arange(T) // net.digits)
        self.digit = put(np.arange(T) % net.digits)

    def norm(self, h, name):
        gain = self.w[name + ".gain"]
        return F.layer_norm(h, h.shape[-1:], gain, self.w.get(name + ".shift"))

    def linear(self, x, name):
        return F.linear(x, self.w[name + ".weight"].T, self.w.get(name + ".bias"))

    def turn(self, x):
        """Rotary positions."""
        u = x[..., 0::2]
        v = x[..., 1::2]
        first = u * self.cos - v * self.sin
        second = u * self.sin + v * self.cos
        return torch.stack((first, second), dim=-1).flatten(-2)

    def embed(self, tokens):
        h = F.embedding(tokens, self.w["embed.token"])
        if "embed.position" in self.w:
            h = h + F.embedding(self.number, self.w["embed.position"])
        if "embed.digit" in self.w:
            h = h + F.embedding(self.digit, self.w["embed.digit"])
        return h

    def attention(self, x, block):
        heads = (3, self.net.heads, self.net.width // self.net.heads)
        qkv = self.linear(x, block + "attn.qkv").unflatten(-1, heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if self.net.positions == "rotary":
            q = self.turn(q)
            k = self.turn(k)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.linear(y.transpose(1, 2).flatten(-2), block + "attn.out")

    def mlp(self, x, block):
        activation = ACTIVATIONS[self.net.activation]
        return self.linear(activation(self.linear(x, block + "mlp.in")), block + "mlp.out")

    def logits(self, tokens):
        h = self.embed(tokens)
        for i in range(self.net.depth):
            block = f"blocks.{i}."
            h = h + self.attention(self.norm(h, block + "ln1"), block)
            h = h + self.mlp(self.norm(h, block + "ln2"), block)
        head = self.w["embed.token" if self.net.tied else "head"]
        return F.linear(self.norm(h[:, self.at], "final"), head)


def gpt(dev, net, weights, tokens, positions, reference):
    """Logits at the positions that carry loss; eager and compiled."""
    put, leaf = setup(dev)
    inputs = put(tokens[:, : positions[-1] + 1])
    T = inputs.shape[1]
    at = put(positions) if len(positions) < T else slice(None)
    targets = put(tokens[:, positions + 1]).reshape(-1)

    def build(compiled):
        w = {name: leaf(x) for name, x in weights.items()}
        decoder = Decoder(net, w, put, T, at)

        def loss():
            return F.cross_entropy(decoder.logits(inputs).flatten(0, 1), targets)

        loss = torch.compile(loss) if compiled else loss
        groups = decayed(w, net.no_decay)
        optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=BETAS, fused=True)
        return compared(w, loss, stepper(loss, optimizer), reference)

    return {"torch eager": partial(build, False), "torch compiled": partial(build, True)}
