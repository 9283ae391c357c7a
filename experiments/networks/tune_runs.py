"""The network, the losses and the runs of `tune`: two searches, Delta-STN, and its schedule on a wider network."""

import itertools
from functools import partial
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray
from tqdm import tqdm

from bilevel import stn
from experiments._harness import record
from experiments.networks import images, searches
from experiments.networks.fashion_runs import SEEDS, Budget, search, self_tune

SEARCHES, TUNED = ("random search", "Optuna TPE, pruner"), "Delta-STN"
METHODS = (*SEARCHES, TUNED)
BUDGET, EPOCHS = 330.0, 10  # seconds of a run; epochs of one training of a search
SIZES = (50_000, 10_000)
WIDTH, WIDER = 2, 4  # times the channels and units of `images.CNN`
ALONG, LAST, START = REPLAYS = ("along the schedule", "its last values, held", "its start, held")
REPLAYED = 20  # epochs of a replay at most
ADAM = images.ADAM["CNN"]


class Network(eqx.Module):
    """A CNN that drops pixels, too."""

    drop: stn.Dropout
    cnn: images.CNN

    def __init__(self, side: int, key: PRNGKeyArray, width: int):
        self.drop, self.cnn = stn.Dropout("drop0"), images.CNN(side, key, width)

    def __call__(self, image: Array, *, key: PRNGKeyArray | None = None) -> Array:
        one, two = (None, None) if key is None else jax.random.split(key)
        return self.cnn(self.drop(image, key=one), key=two)


def space(model: Network, side: int) -> stn.Space:
    """15 hyperparameters."""
    return stn.Space(
        **images.rates([model.drop, *model.cnn.drops]),
        **images.strengths(side),
        shift=stn.Real(0.02, 0, 0.25),
        smoothing=stn.Real(0.02, 0, 0.5),
        **dict.fromkeys(decays(model), images.DECAY),
    )


def decays(model: Network) -> dict[str, eqx.Module]:
    """The layers by the names of their weight decays."""
    return {f"decay{k}": layer for k, layer in enumerate(model.cnn.layers, 1)}


def augmented(image: Array, hyper: dict[str, Array], key: PRNGKeyArray) -> Array:
    one, two = jax.random.split(key)
    image = stn.augment.affine(image, stn.augment.Motion(translation=hyper["shift"]), one)
    return images.augmented(image, hyper, two)


def train_loss(model: Network, batch: tuple, hyper: dict[str, Array], key: PRNGKeyArray) -> Array:
    logits = images.noisy_logits(model, augmented, batch[0], hyper, key)
    targets = stn.smooth_labels(batch[1], logits.shape[-1], hyper["smoothing"])
    decay = sum(hyper[name] * stn.squared_norm(layer) for name, layer in decays(model).items())
    return jnp.mean(optax.softmax_cross_entropy(logits, targets)) + decay


def replay(log, run, config, model, sets, schedule: stn.Schedule) -> dict[str, float]:
    """A line for every epoch; the run's last line, with the test of the best one."""
    train, valid, test = sets
    found = stn.replay(
        model, schedule, train_loss, images.valid_loss, train, valid, ADAM, key=jax.random.key(config["seed"]),
        epochs=config["epochs"], batch_size=images.BATCH, progress=False,
    )  # fmt: skip
    history = found.history
    for k, value in enumerate(history["valid_loss"], 1):
        others = {column: history[column][k - 1] for column in ("train_loss", "seconds")}
        log.write("step", run, k=k, value=value, **others)
    best = {"k": found.best_epoch + 1, "value": history["valid_loss"][found.best_epoch]}
    best |= images.judge(found.best, test)
    return best | {"compile_seconds": found.compile_seconds, "result": found.message}


def along(log: record.Log, what: str, seed: int, tuned: stn.Space, steps: int) -> tuple[int, stn.Schedule]:
    """(epochs, schedule) of a replay, which ends with the epoch that had the least validation loss of the first
    `REPLAYED`. An epoch has `steps` training steps."""
    recorded = record.read(log.path)[name(TUNED, seed)].steps
    best = recorded["value"][recorded["k"] <= REPLAYED].argmin()
    epochs = int(recorded["k"][best])
    columns = stn.Schedule.load(kept(log, seed)).values
    schedule = stn.Schedule({one: column[: epochs * steps] for one, column in columns.items()})
    if what == LAST:
        schedule = stn.Schedule.fixed(**{one: column[-1] for one, column in schedule.values.items()})
    elif what == START:
        schedule = stn.Schedule.fixed(**images.starts(tuned))
    return epochs, schedule


def kept(log: record.Log, seed: int) -> Path:
    """The whole schedule: too large for the log, and needed where this is interrupted before the replays."""
    log.checkpoints.mkdir(exist_ok=True)
    return log.checkpoints / f"{log.path.stem}, {name(TUNED, seed)}.npz"


def name(what: str, seed: int) -> str:
    return f"{what}, {seed}"


def solve(log: record.Log, packaged: bool, smoke: bool) -> None:
    """Every run that is not finished in the log."""
    # 54 gradients: three trainings of a search on the digits, three epochs of Delta-STN
    seeds, epochs, budget = (SEEDS[:1], 2, Budget(0.0, 54)) if smoke else (SEEDS, EPOCHS, Budget(BUDGET, 0))
    jax.config.update("jax_disable_most_optimizations", smoke)  # most of a smoke run is compiling
    runs, done = itertools.product(seeds, (*METHODS, *REPLAYS)), log.finished()
    runs = [(seed, what) for seed, what in runs if name(what, seed) not in done]
    plain = None
    for seed, what in (bar := tqdm(runs, disable=None)):
        run = name(what, seed)
        bar.set_description(run)
        sets = images.data(packaged, seed, SIZES)
        side, width = sets[0][0].shape[-1], WIDER if what in REPLAYS else WIDTH
        model = Network(side, jax.random.key(seed), width)
        tuned = space(model, side)
        assert len(tuned) == 15
        config = {"method": what, "seed": seed, "data": "digits" if packaged else "Fashion-MNIST", "width": width}
        config |= {"sizes": [len(part[1]) for part in sets], "batch": images.BATCH, "epochs": epochs}
        if what in REPLAYS:
            config["epochs"], schedule = along(log, what, seed, tuned, len(sets[0][1]) // images.BATCH)
            log.write("config", run, **config, **record.environment())
            log.write("end", run, **replay(log, run, config, model, sets, schedule))
            continue
        log.write("config", run, **config, space=str(tuned), **record.environment())
        plain = plain or searches.Plain(model, tuned, train_loss, images.valid_loss, ADAM, images.BATCH)
        run_it = partial(self_tune, schedule=kept(log, seed)) if what == TUNED else search
        log.write("end", run, **run_it(log, run, config, plain, model, sets, budget))
