"""Training: batches, objective, loop, the three kinds of run, ensembles, checkpoints, ranks and
sweeps."""
