"""The colours of all figures."""

TRAIN = "#c44e52"
TEST = "#4c72b0"
ORANGE = "#dd8452"
GREEN = "#55a868"
PURPLE = "#8172b3"
SETS = {"id_train": TRAIN, "id_test": ORANGE, "ood_train": TEST, "ood_test": GREEN}
UNIT = {"vmin": 0, "vmax": 1}  # how to colour an image of shares
