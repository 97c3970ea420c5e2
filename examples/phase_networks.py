"""Phase diagrams by measurement: ResNet, MLP-Mixer and ViT, or deep MLPs of many kinds.

    python examples/phase_networks.py                       # three networks on images
    python examples/phase_networks.py --quick
    python examples/phase_networks.py --mlp                 # three activations, norms, strengths
    python examples/phase_networks.py --nets resnet_batchnorm vit --mu 0.5 0.9 1

Random networks at every (sigma_w^2, sigma_b^2): weights Normal(0, sigma_w^2/fan in), biases
Normal(0, sigma_b^2), residual connections of strength mu. chi is the factor by which the squared
norm of the Jacobian changes from block to block; at chi = 1 signals and gradients neither vanish
nor explode. With LayerNorm before the activation and mu = 1 all of the plane is critical. The
theory is that of infinite width; for ViT there is none here, and that of Mixer gives all tokens one
variance: at mu < 1 they differ, and chi is larger. Rows of maps are files in --out, and --resume
measures what is missing. Paper: Doshi, He, Gromov, Critical Initialization of Wide and Deep Neural
Networks using Partial Jacobians, arXiv 2111.12143."""

from tinygrok import cli  # first: it sets up BLAS threads before NumPy loads

import _packs  # isort: skip
import _phase_kinds as kinds  # isort: skip
import numpy as np  # isort: skip
from _kept import kept  # isort: skip

from tinygrok.engine.rng import generator

QUICK = {"grid": 4, "networks": 1}
CRITICAL = 0.1  # |ln chi| of a block that counts as critical
FINE = 60  # points of the theory of networks on images along an axis: for smooth lines


def arguments(argv=None):
    p = cli.parser("phase_networks", __doc__)
    add = p.add_argument
    nets = list(kinds.IMAGES)
    chosen = ["resnet", "mixer", "vit"]
    add("--nets", nargs="+", choices=nets, default=chosen, help="networks on images")
    add("--mlp", action="store_true", help="deep MLPs instead: three activations, three norms")
    strengths = [0.0, 0.5, 1.0] if cli.chosen(p, argv).mlp else [0.5, 0.9, 1.0]
    add("--mu", type=cli.real(0, 1), nargs="+", default=strengths, help="residual strengths")
    add("--grid", type=cli.integer(2, 100), default=11, help="points on an axis of a map")
    add("--networks", type=cli.integer(1, 1000), default=4, help="networks to average over")
    resume = "keep the finished rows of maps in --out and measure the others"
    add("--resume", action="store_true", help=resume)
    args = cli.parse(p, argv, QUICK)
    if args.mlp:
        cli.refuse_idle(args, "has no effect with --mlp", "nets")
    _packs.refuse_twice(args, "nets", "mu")
    return args


def plane(points):
    """The axes sw2 and sb2."""
    return np.linspace(0.25, 4, points), np.linspace(0, 2, points)


def measured_row(args, dev, kind, mu, sb2, rng):
    """chi over sw2, of networks of every point."""
    sw2, _ = plane(args.grid)
    points = zip(sw2.tolist(), rng.spawn(len(sw2)), strict=True)

    def chi(point):
        at, own = point
        return kind.measure(dev, mu, at, sb2, own.spawn(args.networks))

    return dev.map(chi, points)


def measured_maps(args, dev, chosen, folder):
    """{(title, mu): chi (len(sb2), len(sw2))}, a row of a map a file."""
    _, sb2 = plane(args.grid)
    titles = [(kind, mu) for kind in chosen for mu in args.mu]
    rngs = generator(args.seed, "probes").spawn(len(titles) * args.grid)
    progress = cli.Progress(len(rngs), unit="row")
    maps = {}
    for n, rng in enumerate(rngs):
        kind, mu = titles[n // args.grid]
        at = float(sb2[n % args.grid])
        what = (args, dev, kind, mu, at, rng)
        row = kept(folder / f"row-{n}.json", measured_row, *what)
        maps.setdefault((kind.title, mu), []).append(row)
        seen = f"chi {min(row):.3f} to {max(row):.3f}"
        progress(n + 1, f"{kind.title}, mu {mu:g}, sb2 {at:.3g}: {seen}")
    progress.close()
    return {key: np.array(rows) for key, rows in maps.items()}


def theories(chosen, strengths, points):
    """{(title, mu): (sw2, sb2, chi)} of what has a theory."""
    axes = plane(points)
    found = {}
    for kind in chosen:
        for mu in strengths:
            chi = kind.theory(mu, *axes)
            if chi is not None:
                found[kind.title, mu] = (*axes, chi)
    return found


def summary(maps, expected):
    """{"title, mu": numbers of a map}; rms: of ln chi measured over theory."""
    results = {}
    for key, chi in maps.items():
        logs = np.log(chi)
        rms = None
        if key in expected:
            gaps = logs - np.log(expected[key][-1])
            rms = float(np.sqrt(np.mean(gaps**2)))
        title, mu = key
        results[f"{title}, mu {mu:g}"] = {
            "smallest": float(chi.min()),
            "largest": float(chi.max()),
            "critical": float(np.mean(abs(logs) < CRITICAL)),
            "rms": rms,
        }
    return results


def show(results):
    """The table of maps."""
    names = f"{'chi':>15}{'|ln chi| < ' + str(CRITICAL):>18}{'rms to theory':>16}"
    print(f"\n{'':<36}{names}")
    for title, row in results.items():
        between = f"{row['smallest']:.3f} to {row['largest']:.3f}"
        rms = "-" if row["rms"] is None else f"{row['rms']:.3f}"
        print(f"{title:<36}{between:>15}{row['critical']:>18.0%}{rms:>16}")


def columns(args, maps, expected):
    """The maps as columns of log.csv, a point a line."""
    sw2, sb2 = plane(args.grid)
    log = {name: [] for name in ("network", "mu", "sigma_b2", "sigma_w2", "chi", "theory")}
    for (title, mu), chi in maps.items():
        theory = expected.get((title, mu), (np.full(chi.shape, np.nan),))[-1]
        for i, j in np.ndindex(chi.shape):
            values = (title, mu, sb2[i], sw2[j], chi[i, j], theory[i, j])
            for column, value in zip(log.values(), values, strict=True):
                column.append(value)
    return log


def main(argv=None):
    args = arguments(argv)
    experiment = cli.Experiment(args)
    chosen = kinds.MLPS if args.mlp else [kinds.IMAGES[name] for name in args.nets]
    folder = experiment.open_sweep() / cli.PACKS
    maps = measured_maps(args, experiment.dev, chosen, folder)
    expected = theories(chosen, args.mu, args.grid)
    results = summary(maps, expected)

    def figures(out):
        import _figures_phase_networks as plots

        fine = expected if args.mlp else theories(chosen, args.mu, FINE)
        what = "deep MLPs" if args.mlp else "networks on images"
        title = (
            f"Random {what}: measured (colours), theory at infinite width (lines of $\\ln\\chi$)"
        )
        plots.phase_networks(maps, fine, plane(args.grid), title, out / "phase_networks.png")

    experiment.write(results, columns(args, maps, expected), figures)
    show(results)
    experiment.list_files()


if __name__ == "__main__":
    cli.main(main)
