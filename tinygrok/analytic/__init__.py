"""Networks written down, not trained: closed-form weights for modular arithmetic, and their
verification."""
