"""Settings of predict_lcg.py."""

PAPER = {"steps": 100_000, "batch": 256, "warmup": 2048, "weight_decay": 1.0, "measure_every": 1000}
PAPER_2048 = PAPER | {"modulus": 2048, "context": 256, "width": 768}
PAPER_DIGITS = PAPER | {"base": 256, "width": 1024, "heads": 8}
QUICK = {"modulus": 64, "context": 32, "width": 64, "lr": 3e-3, "test_draws": 8, "steps": 1500}
QUICK |= {"train_moduli": 30, "pool": 40}
PRESETS = {
    "small": {},  # the defaults
    "quick": QUICK,
    "paper-2048": PAPER_2048 | {"lr": 3e-4},
    "paper-2048-unseen": PAPER_2048 | {"mode": "unseen", "lr": 1e-4, "depth": 4, "heads": 6},
    "paper-2^16": PAPER_DIGITS | {"mode": "unseen", "modulus": 2**16, "context": 256, "depth": 6},
    "paper-2^32": PAPER_DIGITS | {"modulus": 2**32, "context": 512, "depth": 2, "steps": 200_000},
}
PRESETS["paper-2048-unseen"] |= {"train_moduli": 128, "pool": 128}
PRESETS["paper-2^16"] |= {"train_moduli": 2048, "pool": 8, "lr": 5e-4, "beta2": 0.999, "batch": 64}
PRESETS["paper-2^32"] |= {"pool": 1024, "beta2": 0.98, "batch": 512, "warmup": 5000, "lr": 1e-4}

# Where the cosine ends, as a share of the peak (else 1/300): the authors' 1e-6 of 1e-4, and 1e-7 of
# 5e-4 and of 1e-4.
FLOORS = {"paper-2048-unseen": 1 / 100, "paper-2^16": 1 / 5000, "paper-2^32": 1 / 1000}

# One layer, m = 2048. Where only the authors' draw is trained on, it goes on to copy low bits.
ONE_LAYER = {"modulus": 2048, "context": 256, "batch": 24, "heads": 4, "lr": 3e-3, "steps": 3000}
ONE_LAYER |= {"positions": "rotary", "optimizer": "muon", "hold": 0.8}
PRESETS["2048"] = ONE_LAYER | {"start": ["any=1"], "mixture": ["full=1"], "ramp": [300, 600]}
PRESETS["2048"] |= {"measure_every": 250}

# Moduli that were never trained on, with a mixture of families (_lcg_families.py).
# First a = 1, then multipliers of small order too. The more blocks the better: see the numbers.
MIXED = {"mode": "unseen", "depth": 4, "heads": 4, "width": 96, "lr": 3e-3, "steps": 5000}
MIXED |= {"positions": "rotary", "optimizer": "muon", "hold": 0.8}
MIXED |= {"start": ["wrap=1"], "mixture": ["wrap=0.2", "full=0.4", "free=0.4"], "ramp": [300, 1000]}
# Of middle richness in multipliers, then three powers of primes.
HELD_OUT = [176, 160, 147, 135, 108, 98, 128, 125, 81]
PRESETS["unseen"] = MIXED | {"moduli": [65, 256], "context": 64, "test_moduli": HELD_OUT}
QUICK_UNSEEN = MIXED | {"moduli": [45, 160], "context": 32, "test_moduli": [54, 75, 100, 112]}
QUICK_UNSEEN |= {"mixture": ["wrap=1"], "width": 64, "batch": 96, "steps": 900}
QUICK_UNSEEN |= {"depth": 3, "hold": 0.4}

# Generators that hide their state (tinygrok/tasks/pcg.py): they show 5, or 4, of its 10 bits.
HIDDEN = {"modulus": 2**10, "context": 96, "batch": 32, "depth": 2, "heads": 4, "width": 64}
HIDDEN |= {"lr": 3e-3, "positions": "rotary", "optimizer": "muon", "hold": 0.8}
PRESETS["truncated"] = HIDDEN | {"generator": "truncated", "keep_bits": 5, "steps": 2000}
PRESETS["pcg"] = HIDDEN | {"generator": "xsh-rr", "keep_bits": 4, "steps": 1200}
