"""Networks of autoinit.py in training, from every initialisation and seed."""

from typing import NamedTuple

from _autoinit_networks import Start

from tinygrok import cli
from tinygrok.engine.optim import cosine
from tinygrok.training.checkpoint import load_training
from tinygrok.training.images import ImageTraining
from tinygrok.training.loop import NonFiniteLoss

MOMENTS = {"sgd": {"momentum": 0.9}, "adamw": {"betas": (0.9, 0.999)}}
INITS = ("off", "kaiming", "xavier", "autoinit")
REPORTED = ("off", "autoinit", "kaiming", "xavier")  # probes are drawn in this order


class Compared(NamedTuple):
    """What became of a network under every initialisation.

    starts     first weights and their tuning, of every seed
    norms      {initialisation: (Jacobian loss, J of every block)}, of the first seed
    rates      {initialisation: the learning rate with the best training accuracy, first seed}
    histories  {(initialisation, learning rate, seed): history; None: its loss was not finite}
    classes    number of classes"""

    starts: list
    norms: dict
    rates: dict
    histories: dict
    classes: int

    def runs(self, init):
        """Histories of the seeds at the chosen rate."""
        return [self.histories[init, self.rates[init], s] for s in range(len(self.starts))]

    def accuracies(self, init, split):
        """Last accuracies of the seeds on a split; a network that diverged has that of chance."""
        return [last_accuracy(run, split, self.classes) for run in self.runs(init)]


def last_accuracy(history, split, classes):
    return float(history[f"{split}_accuracy"][-1]) if history else 1 / classes


def compare(experiment, args, name, net, images, data):
    """Tune and train a network with its settings args; None when interrupted.

    name          of the network, before the names of its checkpoints
    images, data  as loaded, and normalised"""
    dev = experiment.dev
    starts = [Start(args, dev, net, data, args.seed + s) for s in range(args.seeds)]
    norms = {init: starts[0].jacobians(init) for init in REPORTED}
    loss = f"Jacobian {args.jacobian_loss} loss"
    change = f"{norms['off'][0]:.4g} -> {norms['autoinit'][0]:.4g}"
    print(f"tuned in {starts[0].seconds:.1f} s: {loss} {change}")
    found = Compared(starts, norms, {}, {}, net.classes)
    if args.steps == 0:
        return found
    tries = len(args.inits) * (len(args.lr) + args.seeds - 1)
    progress = cli.Progress(tries * args.steps, every=5.0)
    with cli.Interrupt() as interrupt:
        for s in range(args.seeds):
            for init in args.inits:
                for lr in args.lr if s == 0 else [found.rates[init]]:
                    arm = Arm(name, init, lr, s)
                    run = make_run(experiment, args, net, images, starts[s].weights[init], arm)
                    before = len(found.histories) * args.steps
                    history = train(experiment, args, run, arm, progress, before, interrupt)
                    if history is None:
                        return None
                    found.histories[init, lr, s] = history or None
                if s == 0:
                    found.rates[init] = best_rate(args, found, init)
    progress.close()
    return found


def best_rate(args, found, init):
    accuracies = {}
    for lr in args.lr:
        accuracies[lr] = last_accuracy(found.histories[init, lr, 0], "train", found.classes)
    return max(args.lr, key=accuracies.get)


class Arm(NamedTuple):
    """A network in training: of an initialisation, at a learning rate, of a seed."""

    network: str
    init: str
    lr: float
    seed: int

    @property
    def file(self):
        """The name of its checkpoint: those of several networks have a folder of their own."""
        name = f"{self.init}-{self.lr:g}-{self.seed}"
        return f"{cli.PACKS}/{self.network}-{name}.npz" if self.network else f"{name}.npz"


def make_run(experiment, args, net, images, weights, arm):
    return ImageTraining.on_task(
        net,
        images,
        args.batch,
        args.seed + arm.seed,
        lr=arm.lr,
        weight_decay=args.weight_decay,
        shifts=args.augment,
        weights=weights,
        device=experiment.dev,
        optimizer=args.optimizer,
        clip=args.clip,
        schedule=cosine(args.steps // 20, args.steps),
        **MOMENTS[args.optimizer],
    )


def train(experiment, args, run, arm, progress, before, interrupt):
    """The history of an arm; empty where its loss was not finite, None when interrupted.

    before   steps of the arms before this one"""
    path = experiment.out / arm.file
    path.parent.mkdir(exist_ok=True)
    own = {"arm": path.stem}
    if args.resume and path.exists():
        flags = experiment.args  # the settings of a checkpoint are those of the whole run
        load_training(path, run, cli.config(flags) | own, flags.defaults | own)
    if not run.whole:  # it has diverged
        return {}

    def show(row):
        train = f"train {row['train_accuracy']:.3f} ({row['train_loss']:.3f})"
        test = f"test {row['test_accuracy']:.3f}"
        progress(before + row["step"], f"{arm.network} {arm.init:<9} {train}  {test}".strip())

    save = experiment.saver(path, **own)
    try:
        run.fit(args.steps, args.measure_every, show, save, args.save_seconds, interrupt)
    except NonFiniteLoss as error:
        print(f"{arm.init}, lr {arm.lr:g}: {error}")
        save(run)
        return {}
    if run.t < args.steps:
        print(f"interrupted; the checkpoints are in {experiment.out}{cli.to_go_on()}")
        return None
    return run.history
