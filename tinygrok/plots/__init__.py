"""Figures, one file a paper; matplotlib is imported when one is drawn."""
