"""Kinds of networks in the tables of arXiv 2111.12143: critical_init.py --survey measures them."""

import math

# activation, sigma_w^2, sigma_b^2, mu, norm
SURVEY = [
    ("relu", 2, 0),
    ("relu", 1.5, 0.09),
    ("leaky_relu", 2 / 1.0001, 0),
    ("identity", 1, 0),
    ("erf", math.pi / 4, 0),
    ("erf", 1.7562, 0.18414),
    ("tanh", 1, 0),
    ("tanh", 2.5, 0.05),
    ("gelu", 1.983058, 0.172922),
    ("relu", 1.69, 0, 0, "pre"),
    ("erf", 1, 0.104851, 0, "pre"),
    ("relu", 1, 1 / (math.pi - 1), 0, "act"),
    ("relu", 2 * 0.19, 0, 0.9),
    ("erf", 1, 0, 1),
    ("relu", 1.96, 0.09, 1, "pre"),
    ("erf", 1, 0.09, 1, "pre"),
    ("gelu", 3, 0.5, 1, "pre"),
    ("tanh", 0.5, 1, 1, "pre"),
    ("relu", 1.44, 0.09, 1, "post"),
    ("relu", 1, 0, 0.9, "batch"),
]
