"""The style of figures, and the one that a run draws; matplotlib is imported when one is drawn."""
