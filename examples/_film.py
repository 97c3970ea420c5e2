"""A film of grokking: accuracies, neurons and spectra, from the weights of --keep-every."""

import io

import numpy as np
from _pictures import MOST, reduced

from tinygrok import cli
from tinygrok.disk.writer import atomic_write
from tinygrok.plots.colors import ORANGE, TEST, TRAIN, UNIT
from tinygrok.plots.modular_polynomials import GREYS, clearest, dominant
from tinygrok.plots.style import SHARE, chance, figure, image, label
from tinygrok.probes.fourier import neuron_rows, spectrum
from tinygrok.probes.phases import step_of_99
from tinygrok.training.checkpoint import load_arrays

FRAMES = 40  # at most, and the first
FRAME_MS = 150
LAST_MS = 3000
ERROR = 10  # levels of 255 by which a colour may be off
ROWS = 100  # of the spectra, at most
WEIGHTS = {"U1[n]": (TRAIN, "o"), "U2[n]": (ORANGE, "s"), "W[q]": (TEST, "^")}  # of a neuron


def add_flag(p):
    told = f"write a GIF of the transition (without --keep-every: {FRAMES} frames, evenly)"
    p.add_argument("--animate", action="store_true", help=told)


def check(args):
    """Refuse a film that could not be shown; say how often weights are kept, if it is not said."""
    if not args.animate:
        return
    if args.no_plot:
        raise cli.InputError("--animate means nothing with --no-plot")
    if args.keep_every is None:
        args.keep_every = max(1, args.steps // FRAMES)


def check_waves(args, run):
    if args.animate and (run.order is None or len(run.order) < 3):
        raise cli.InputError(f"--animate: no waves are known of {args.task}, p = {args.p}")


class Film:
    """The artists of a figure, moved from frame to frame.

    frames   {step: weights}

    Neurons are the clearest ones when the test accuracy reaches 99 %: those that did it. The last
    frame says what their frequencies are, and orders the rows of the spectra."""

    def __init__(self, run, frames):
        self.history = {name: np.asarray(column) for name, column in run.history.items()}
        self.frames = {step: neuron_rows(weights, run.order) for step, weights in frames.items()}
        last = list(self.frames.values())[-1]
        self.figure = figure(7, 5.2)
        self.figure.set_dpi(100)
        self.title = self.figure.suptitle(" ")
        top, bottom = self.figure.subfigures(2, 1, height_ratios=(1.15, 1))
        accuracy, shares = top.subplots(1, 2, width_ratios=(1.5, 1))
        self._accuracies(accuracy, len(last[-1].T))
        order = np.argsort(dominant(last[-1]), kind="stable")
        self.shown = order[:: -(-len(order) // ROWS)]
        self._spectra(shares, last)
        understood = step_of_99(run.history, "test")
        late = [rows for step, rows in self.frames.items() if step >= (understood or np.inf)]
        self.neurons = clearest([*late, last][0], 3)
        self._neurons(bottom, last, place="log n" if run.order[0] else "n")

    def _accuracies(self, ax, p):
        self.curves = {}
        looks = {"train_accuracy": ("train", TRAIN, "--"), "test_accuracy": ("test", TEST, "-")}
        looks["ipr_mean"] = ("mean IPR", "k", "-.")
        for name, (text, color, ls) in looks.items():
            self.curves[name] = ax.plot([], [], color=color, ls=ls, label=text)[0]
        chance(ax, p)
        steps = self.history["step"]
        ax.set_xscale("symlog", linthresh=max(1, *steps[:2]), linscale=0.5)
        ax.xaxis.set_major_formatter("{x:g}")
        limits = (0, max(1, steps[-1]))
        label(ax, above=2, xlabel="step", ylabel="accuracy, IPR", xlim=limits, ylim=SHARE)

    def _spectra(self, ax, rows):
        self.image = image(ax, self._shares(rows), UNIT | GREYS, xlabel="frequency")
        ax.set(ylabel=f"{len(self.shown)} neurons, sorted", title="spectra of the read-out")
        self.figure.colorbar(self.image, ax=ax, label="share of the norm")

    def _shares(self, rows):
        power = spectrum(rows[-1][self.shown])
        norm = np.linalg.norm(power, axis=1, keepdims=True)
        return power / np.maximum(norm, 1e-30)

    def _neurons(self, fig, rows, place):
        """Row x of a neuron over (f n) mod p, f its frequency at the end: then one period."""
        self.dots = []
        axes = fig.subplots(1, len(self.neurons), sharey=True, squeeze=False)[0]
        highest = max(np.abs(x[self.neurons]).max() for x in rows)
        for ax, k in zip(axes, self.neurons, strict=True):
            for s, (name, (color, marker)) in enumerate(WEIGHTS.items()):
                x = rows[s][k]
                f = dominant(x)
                at = f * np.arange(len(x)) % len(x)
                dots = ax.plot(at, x, marker, color=color, ms=2.5, mew=0, label=name)[0]
                self.dots.append((dots, s, k))
            title = f"neuron {k}: frequency {f}"
            ax.set(title=title, xlabel=f"({f} {place}) mod {len(at)}")
            ax.set_ylim(-1.3 * highest, 1.3 * highest)
        axes[0].set_ylabel("weight")
        names = axes[0].get_legend_handles_labels()
        fig.legend(*names, loc="outside upper center", ncol=3, frameon=False)

    def draw(self, step):
        """The picture of a step, in RGB."""
        from PIL import Image

        rows = self.frames[step]
        until = self.history["step"] <= step
        for name, curve in self.curves.items():
            curve.set_data(self.history["step"][until], self.history[name][until])
        self.title.set_text(f"step {step}")
        self.image.set_data(self._shares(rows))
        for dots, s, k in self.dots:
            dots.set_ydata(rows[s][k])
        drawn = io.BytesIO()
        self.figure.savefig(drawn, format="png", dpi=100)
        self.figure.set_layout_engine("none")  # the axes stay where the first frame has put them
        return Image.open(drawn).convert("RGB")


def load_frames(folder):
    """{step: weights} of at most FRAMES + 1 of the files in a folder, evenly, the last included."""
    paths = sorted(folder.glob("step_*.npz"))
    every = -(-(len(paths) - 1) // FRAMES) or 1
    frames = {}
    for path in paths[::-1][::every][::-1]:
        meta, arrays = load_arrays(path)
        frames[meta["step"]] = {name.partition("/")[2]: x for name, x in arrays.items()}
    return frames


def shared_palette(*pictures):
    """The commonest colours of some pictures, as bytes."""
    pixels = np.concatenate([np.asarray(picture).reshape(-1, 3) for picture in pictures])
    palette, _ = reduced(pixels, ERROR)
    return palette[:MOST].tobytes()


def write(run, folder, path):
    """The film of a run whose weights were kept in a folder."""
    from PIL import Image

    frames = load_frames(folder)
    if not frames:
        print(f"no film: there are no weights in {folder}")
        return
    film = Film(run, frames)
    pictures = [film.draw(step) for step in frames]
    palette = Image.new("P", (1, 1))
    palette.putpalette(shared_palette(pictures[0], pictures[-1]))
    drawn = [picture.quantize(palette=palette, dither=0) for picture in pictures]
    times = [FRAME_MS] * (len(drawn) - 1) + [LAST_MS]
    data = io.BytesIO()
    drawn[0].save(
        data, "gif", save_all=True, append_images=drawn[1:], duration=times, loop=0, optimize=False
    )
    atomic_write(path, lambda file: file.write(data.getvalue()))
