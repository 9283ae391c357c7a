"""What does self-tuning cost?  (a step of STN or Delta-STN) / (a plain training step of the same network)

One step is one compiled program: gradients and optimisers, on the networks, losses and batches of `images.py` and
`language.py`, in float32, on random data; the language model's decoder has no response but where it says "decoder too",
and one of rank 8 where it says so.
Programs take turns, and medians over the turns are compared. The cycle adds a step's share of the validation steps:
(train + valid_steps / train_steps * valid) / plain. Floating-point operations are XLA's own count; memory is what XLA
reserves for arguments, results and temporaries of a step. Plain: the network before `stn.convert`, at fixed
hyperparameters.

Limits: a step of STN 1.6, of Delta-STN 2.6 times a plain one, 2.2 and 3.6 where the decoder responds; memory 2.2 times.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib import pyplot as plt
from matplotlib.lines import Line2D
from tqdm import tqdm

from bilevel import stn
from bilevel.stn._tune import start
from bilevel.stn.train import Losses, train_step, valid_step
from experiments._harness import console, record, style
from experiments.networks import images, language

KEY, ROUNDS = jax.random.key(0), 30
METHODS = {"STN": stn.stn, "Delta-STN": stn.delta_stn}
WHAT = {"seconds": "time of a step", "cycle": "with validation steps", "flops": "operations", "memory": "memory"}
LIMITS = {"seconds": {"STN": 1.6, "Delta-STN": 2.6}, "memory": {"STN": 2.2, "Delta-STN": 2.2}}
COLOURS = {"STN": "#009E73", "Delta-STN": style.COLOURS["maid"]}


class Case(NamedTuple):
    """A network before `stn.convert`, and how it is trained."""

    model: Any
    space: stn.Space
    convert: Callable
    losses: tuple[Callable, Callable]
    batch: Any
    optimiser: optax.GradientTransformation


def image_case(network: type, side: int) -> Case:
    model = network(side, KEY)
    batch = jax.random.uniform(KEY, (images.BATCH, 1, side, side)), jnp.arange(images.BATCH, dtype=jnp.int32) % 10
    losses = images.train_loss, images.valid_loss
    return Case(model, images.space(model, side), stn.convert, losses, batch, images.ADAM[network.__name__])


def language_case(
    vocabulary: int, units: int, length: int, batch: int, names: tuple[str, ...] = ("output",), convert=language.convert
) -> Case:
    draws = "batch" if "connect" in names else "example"  # as in `lstm_runs.py`
    model = language.LSTM(vocabulary, units, names, key=KEY)
    space = stn.Space(**{
        name: (stn.Positive if name in ("alpha", "beta") else stn.Rate)(0.1, draws=draws) for name in names
    })  # fmt: skip
    words = jax.random.randint(KEY, (batch, length + 1), 0, vocabulary, jnp.int32)
    losses = language.train_loss, language.valid_loss
    windows = language.Windows(words[:, :-1], words[:, 1:])
    return Case(model, space, convert, losses, windows, language.WEIGHTS)


def of_decoder(path: str, layer: Any) -> int | None:
    return 8 if path == ".decoder" else None


def cases(smoke: bool) -> dict[str, Callable[[], Case]]:
    side, sizes = (8, (100, 8, 5, 4)) if smoke else (28, (4000, 200, 35, 20))
    few = {"MLP": lambda: image_case(images.MLP, side), "LSTM, one rate": lambda: language_case(*sizes)}
    more = {
        "LSTM, seven": lambda: language_case(*sizes, names=language.NAMES),
        "LSTM, decoder too": lambda: language_case(*sizes, convert=stn.convert),
        "LSTM, decoder of rank 8": lambda: language_case(*sizes, convert=partial(stn.convert, rank=of_decoder)),
        "CNN": lambda: image_case(images.CNN, side),
    }
    return few if smoke else few | more


def programs(case: Case) -> dict[str, tuple[Callable, tuple]]:
    """name -> (a step, its arguments)."""
    params, static = eqx.partition(case.model, eqx.is_inexact_array)
    values = case.space.values(case.space.start(jnp.float32)[0])

    def plain(params, state, values, batch, key):
        def loss(params):
            return case.losses[0](stn.bind(eqx.combine(params, static), None, values), batch, values, key)

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = case.optimiser.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    found = {"plain": (plain, (params, case.optimiser.init(params), values, case.batch, KEY))}
    for name, make in METHODS.items():
        method, model = make(case.optimiser), case.convert(case.model, case.space, key=KEY)
        losses = Losses(method, case.space, eqx.filter(model, eqx.is_inexact_array, inverse=True), *case.losses)
        args = start(model, case.space, method), case.batch, KEY
        found[name] = lambda *args, losses=losses: train_step(losses, *args), args
    found["validation"] = lambda *args, losses=losses: valid_step(losses, *args), args  # costs both the same
    return found


def measure(case: Case, rounds: int) -> dict[str, dict[str, float]]:
    """By program: what XLA says of it, and the median of its seconds."""
    result, compiled = {}, {}
    for name, (step, args) in programs(case).items():
        began = time.perf_counter()
        program = jax.jit(step).lower(*args).compile()
        memory = program.memory_analysis()
        parts = {part: getattr(memory, f"{part}_size_in_bytes") / 1e6 for part in ("argument", "output", "temp")}
        result[name] = {
            "compile_seconds": time.perf_counter() - began, "flops": program.cost_analysis()["flops"],
            "memory": sum(parts.values()), **parts,
        }  # fmt: skip
        compiled[name] = program, args
        jax.block_until_ready(program(*args))
    seconds = {name: [] for name in compiled}
    for _ in range(rounds):
        for name, (program, args) in compiled.items():
            began = time.perf_counter()
            jax.block_until_ready(program(*args))
            seconds[name].append(time.perf_counter() - began)
    for name, times in seconds.items():
        result[name] |= {"seconds": float(np.median(times)), "fastest": min(times)}
    return result


def solve(log: record.Log, packaged: bool, smoke: bool) -> None:
    """Every network that is not in the log yet."""
    rounds = 3 if smoke else ROUNDS
    for name, make in (bar := tqdm(cases(smoke).items(), disable=None)):
        bar.set_description(name)
        if name not in log.finished():
            case = make()
            sizes = [leaf.size for leaf in jax.tree.leaves(eqx.filter(case.model, eqx.is_inexact_array))]
            log.write("config", name, rounds=rounds, parameters=sum(sizes), hyperparameters=len(case.space),
                      batch=len(jax.tree.leaves(case.batch)[0]), **record.environment())  # fmt: skip
            log.write("end", name, programs=measure(case, rounds))


def ratios(run: record.Run, what: str) -> dict[str, float]:
    """By method: over plain; "cycle" is `seconds` with the validation steps."""
    found, column = run.end["programs"], "seconds" if what == "cycle" else what
    result = {}
    for name, make in METHODS.items():
        method, total = make(), found[name][column]
        if what == "cycle":
            total += method.valid_steps / method.train_steps * found["validation"][column]
        result[name] = total / found["plain"][column]
    return result


def report(runs: dict[str, record.Run]) -> None:
    rows = []
    for network, run in runs.items():
        found = run.end["programs"]
        for name, one in found.items():
            times = [f"{ratios(run, what)[name]:.2f}" if name in METHODS else "" for what in WHAT]
            parts = (f"{one[part]:.2f}" for part in ("argument", "output", "temp"))
            rows.append((
                f"{network}: {name}", f"{1e3 * one['seconds']:.2f}", *times[:2], f"{one['flops'] / 1e6:.0f}", times[2],
                f"{one['memory']:.2f}", times[3], *parts, f"{one['compile_seconds']:.1f}",
            ))  # fmt: skip
    header = ("ms", "x", "cycle x", "Mflop", "x", "MB", "x", "arguments", "results", "temporaries", "s compiling")
    print(console.table(("a step, x: times plain", *header), rows) + "\n")
    for what, limits in LIMITS.items():
        print(f"limits of {what}: {', '.join(f'{method} {limit:g}' for method, limit in limits.items())} times plain")
    print("limits of seconds where the decoder responds: STN 2.2, Delta-STN 3.6 times plain")


def draw(runs: dict[str, record.Run], beside: Path, figures: Path) -> None:
    style.use()
    figure, axes = plt.subplots(1, len(WHAT), figsize=(12.6, 1.6 + 0.6 * len(runs)), sharey=True)
    places = np.arange(len(runs))
    for a, (what, title) in zip(axes, WHAT.items(), strict=True):
        for k, name in enumerate(METHODS):
            bars = a.barh(
                places + 0.38 * (k - 0.5), [ratios(run, what)[name] for run in runs.values()], height=0.36,
                color=COLOURS[name], label=name,
            )  # fmt: skip
            a.bar_label(bars, fmt="%.2f", padding=-26, fontsize=8.5, color="white")
            if what in LIMITS:
                a.axvline(LIMITS[what][name], color=COLOURS[name], ls=":", lw=1.8)
        a.set(title=title, xlabel="times plain", yticks=places, yticklabels=list(runs))
        a.grid(axis="y", visible=False)
    axes[0].invert_yaxis()
    handles = [*axes[0].get_legend_handles_labels()[0], Line2D([], [], color=style.INK, ls=":", label="limits")]
    figure.legend(handles=handles, loc="outside upper center", ncols=3)
    style.save(figure, figures.with_name(f"{figures.name}_ratios.png"))


if __name__ == "__main__":
    console.main("bench_stn", "The cost of a self-tuning step.", solve, report, draw)
