"""Settings of in_context.py."""

QUICK = {"p": 5, "shots": 8, "tasks": 16, "alpha": 0.6, "batch": 64, "steps": 1000}
QUICK |= {"lr": 2e-3, "warmup": 100, "measure_every": 100}
PAPER = {
    "p": 29,
    "shots": 32,
    "tasks": 512,
    "alpha": 0.6,
    "depth": 4,
    "width": 512,
    "heads": 4,
    "batch": 1024,
    "lr": 1.5e-4,
    "weight_decay": 2.0,
    "warmup": 10_000,
    "schedule": "cosine",
    "steps": 200_000,
    "init_std": 0.02,
    "vocab": 47,
    "measure_every": 1000,
    "repeats": True,
}

# Beyond ratio matching, by a curriculum of ours, not the paper's. Lines first, then sums that show
# their steps, which fade.
SUMS = {
    "alpha": 0.75,
    "batch": 96,
    "tasks_per_step": 6,
    "start": ["line=1"],
    "ramp": [800, 1200],
    "rows": ["line=0.1", "steps=0.65", "plain=0.25"],
    "fade": [3000, 6500],
    "optimizer": "muon",
    "lr": 3e-3,
    "weight_decay": 0.1,
    "hold": 0.8,
    "steps": 12_000,
    "measure_every": 500,
}
# Goes on from the weights of sums, mostly on rows drawn freely.
FREE = {name: value for name, value in SUMS.items() if name != "fade"}
FREE |= {"start": ["line=0.1", "axis=0.35", "plain=0.55"], "ramp": [0, 2500], "steps": 8000}
FREE |= {"rows": ["line=0.05", "axis=0.25", "plain=0.7"]}

# The same modulo 11, each from the weights of the one before. Which example to match is harder
# there (rows of two lines teach it), and so are sums (rows of sums alone show enough of them).
P_11 = SUMS | {"p": 11, "tasks": 96, "width": 96, "heads": 3, "measure_every": 250}
LINES_11 = P_11 | {"rows": ["two-lines=0.4", "plain=0.6"], "ramp": [500, 900], "steps": 3500}
SUMS_11 = P_11 | {"start": ["line=0.1", "two-lines=0.15", "sums=0.75"], "ramp": [500, 2000]}
SUMS_11 |= {"rows": ["line=0.05", "two-lines=0.1", "sums=0.1", "steps=0.45", "plain=0.3"]}
SUMS_11 |= {"fade": [2500, 6000], "steps": 8000}
# Smaller rates: at those of the others sums are learnt only while the rates fall.
FREE_11 = P_11 | {"start": ["line=0.05", "two-lines=0.1", "sums=0.05", "steps=0.4", "plain=0.4"]}
FREE_11 |= {"rows": ["line=0.05", "two-lines=0.1", "axis=0.25", "plain=0.6"], "ramp": [1000, 5000]}
FREE_11 |= {"fade": [500, 4000], "lr": 1.5e-3, "matrix_lr": 0.008, "hold": 0.4, "steps": 10_000}

PRESETS = {"small": {}, "paper": PAPER, "sums": SUMS, "free": FREE}  # small: the defaults
PRESETS |= {"lines-11": LINES_11, "sums-11": SUMS_11, "free-11": FREE_11}
