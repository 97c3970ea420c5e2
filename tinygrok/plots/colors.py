"""The colours of all figures: those of Okabe and Ito, which the colour-blind can tell apart."""

TRAIN = "#d55e00"
TEST = "#0072b2"
ORANGE = "#e69f00"
GREEN = "#009e73"
PURPLE = "#cc79a7"
INPUTS = (TRAIN, ORANGE, GREEN, PURPLE)  # layers of the inputs; the read-out is TEST
UNIT = {"vmin": 0, "vmax": 1}  # how to colour an image of shares
