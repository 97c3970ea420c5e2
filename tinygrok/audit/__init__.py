"""Gradients checked against differences and complex steps."""
