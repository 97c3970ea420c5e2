"""What corrupted_labels.py measures of the networks behind --net other than the two-layer one: of
their rows (examples/_nets.py), not of neurons, which have no read-in and read-out of their own."""

import _figures_corrupted_labels as plots
import _nets
import numpy as np
from _corrupted_anatomy import Outcomes

from tinygrok.engine.rng import generator
from tinygrok.probes.fourier import ipr, mean_known

BROAD = (0.05, 0.5, 0.95)  # quantiles by which results tell the width of a histogram


class Rows(Outcomes):
    """What became of every network, and the IPR of its rows."""

    def of_seed(self, e):
        results = super().of_seed(e)
        first = self.run.model.init(generator(self.args.seed + e, "init"))
        ends = {"initial_": first, "": self.run.params.to_host(e)}
        for when, weights in ends.items():
            for name, x in _nets.rows_of(weights, self.order).items():
                found = ipr(x)
                results[f"{when}ipr_{name}"] = mean_known(found)
                known = found[~np.isnan(found)]  # of a dead row there is none
                quantiles = np.quantile(known, BROAD) if known.size else [np.nan] * len(BROAD)
                results[f"{when}ipr_{name}_5_50_95"] = [round(float(q), 4) for q in quantiles]
        return results

    def figures(self, out):
        plots.training(self.history, self.commonest_phases(), out / "training.png")
        first = self.run.model.init(generator(self.args.seed, "init"))
        ends = [_nets.rows_of(weights, self.order) for weights in (first, self.weights)]
        histograms = {name: [ipr(end[name]) for end in ends] for name in ends[0]}
        plots.rows(histograms, out / "rows.png")
        self.releases(out / "releases.png")
