"""The colours of all figures."""

TRAIN = "#c44e52"
TEST = "#4c72b0"
ORANGE = "#dd8452"
GREEN = "#55a868"
PURPLE = "#8172b3"
UNIT = {"vmin": 0, "vmax": 1}  # how to colour an image of shares
