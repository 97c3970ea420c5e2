"""Networks written down, not trained: weights for modular arithmetic, and their verification."""
