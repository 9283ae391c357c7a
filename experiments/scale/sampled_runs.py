"""The runs of `sampled`: all patches at once, mini-batches first, ISGD. All have one start, and processor seconds for a
budget; programs are compiled before their clock starts, and it stands still while a run is judged.

What is certified is a mean over all patches. Curves are of some of them, the same for all, to which no run has access
as a set of its own: f(theta) there to a few thousandths.
"""

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

import bilevel
from bilevel import problems
from bilevel.problems import _learning as learning
from experiments._harness import record
from experiments.imaging import bsd68_runs
from experiments.scale.cleaning_data import Clock

SIGMA, SEED, SIZE, LOOKS = 25 / 255, 0, 16, 12
FULL, SAMPLED, VALUE, ISGD = "all patches, certified", "mini-batches, then certified", "their value, certified", "ISGD"
P = Q = 0.5  # accuracy and step of ISGD fall like k^-P and k^-Q
REGULARISER = problems.Ridge()


class Setting(NamedTuple):
    """`budget`: processor seconds of the first run; the others have a third. `taps`: filters are taps x taps."""

    given: learning.Examples
    budget: float
    steps: int
    taps: int
    config: dict

    @property
    def start(self) -> PyTree:
        return REGULARISER.start(self.taps, np.float64)

    def units(self, count: int | None = None) -> bilevel.Chunked:
        """All patches, sixteen at a time, in float64."""
        return bilevel.Chunked(weighed, *self.given.of(slice(count), float), size=SIZE)


def weighed(clean: np.ndarray, noisy: np.ndarray, weights: np.ndarray) -> learning.Weighed:
    return learning.Weighed(learning.Examples(clean, noisy, weights), REGULARISER)


def needs() -> None:
    """Raises FileNotFoundError where BSD400 is missing, and says what to fetch."""
    if not os.environ.get("BILEVEL_DATA") or not os.path.isdir(os.path.join(os.environ["BILEVEL_DATA"], "bsd400")):
        raise FileNotFoundError("bsd400 is not here: see `make bsd68`. Name the folder that holds it by BILEVEL_DATA.")


def setting(packaged: bool, smoke: bool) -> Setting:
    images = bsd68_runs.images(packaged, smoke)[0]
    size, count, budget, steps, taps = (16, 32, 6.0, 4, 3) if smoke else (64, 2000, 1800.0, 450, 5)
    given = learning.examples(images, SIGMA, size=size, count=count, seed=SEED)
    source = "photographs" if packaged else "bsd400"
    config = {"source": source, "patches": count, "side": size, "taps": taps, "sigma": SIGMA, "budget": budget}
    return Setting(given, budget, steps, taps, config)


class Run:
    """One run's clock and its lines in the log."""

    def __init__(self, log: record.Log, name: str, here: Setting, **config: Any):
        log.write("config", name, **here.config, **config, **record.environment())
        self.log, self.name, self.look = log, name, 0
        some = np.random.default_rng(SEED).permutation(len(here.given.clean))[: 16 * SIZE].reshape(-1, SIZE)
        self.judges = [learning.Weighed(here.given.of(group), REGULARISER) for group in some]
        self.clock = Clock()

    def judge(self, theta: PyTree, **told: Any) -> None:
        spent = self.clock.stop()
        theta = jax.tree.map(lambda v: jnp.asarray(v, np.float32), theta)
        eps = 5e-4 * self.judges[0].data.size ** 0.5
        values = [one.upper(bilevel.solve_lower(one, theta, eps=eps).x, theta) for one in self.judges]
        self.log.write("judged", self.name, k=self.look, f=float(np.mean(values)), **spent, **told)
        self.look += 1
        self.clock.go()

    def end(self, **told: Any) -> None:
        self.log.write("end", self.name, **self.clock.stop() | told)


def certified(run: Run, here: Setting, theta: PyTree, seconds: float) -> bilevel.Solution:
    """The default method on all patches, for about so many processor seconds."""
    few, clock = here.units(2 * SIZE), Clock()
    for _ in range(2):  # the second is timed
        clock = Clock()
        done = bilevel.solve(few, theta, max_steps=1, max_cost=250, progress=False)
    per_cost = clock.stop()["cpu_seconds"] / done.cost * len(here.given.clean) / (2 * SIZE)
    run.clock.go()

    def callback(state, info):
        run.judge(state.theta, steps=state.steps, cost=info.counts.cost, value=info.value, error=info.value_error)

    solution = bilevel.solve(
        here.units(), theta, max_cost=max(60, int(seconds / per_cost)), callback=callback, progress=False
    )
    run.judge(solution.theta, steps=solution.steps, cost=solution.cost, value=solution.value,
              error=solution.value_error)  # fmt: skip
    return solution


def full(log: record.Log, here: Setting) -> None:
    run = Run(log, FULL, here)
    run.judge(here.start, steps=0)
    run.clock.stop()  # until the programs are compiled
    solution = certified(run, here, here.start, here.budget)
    run.end(**told(solution))


def told(solution: bilevel.Solution) -> dict:
    return {name: v for name, v in record.summary(solution).items() if name not in ("theta", "seconds")}


def sampled(log: record.Log, here: Setting) -> None:
    """Adam on mini-batches as the package has it, with its rate; then the rest of a third of the budget."""
    theta = jax.tree.map(lambda v: jnp.asarray(v, np.float32), here.start)
    list(learning.mini_batches(here.given.of(slice(SIZE)), REGULARISER, theta, steps=1, seed=SEED))
    run = Run(log, SAMPLED, here, mini_batches=here.steps)
    run.judge(theta, steps=0)
    for k, step in enumerate(learning.mini_batches(here.given, REGULARISER, theta, steps=here.steps, seed=SEED), 1):
        if k % max(1, here.steps // LOOKS) == 0 or k == here.steps:
            run.judge(step.theta, steps=k)
    first = run.clock.stop()
    theta = jax.tree.map(lambda v: np.asarray(v, float), step.theta)
    np.savez(log.path.with_suffix(".npz"), **theta)
    solution = certified(run, here, theta, here.budget / 3 - first["cpu_seconds"])
    run.end(**told(solution), **{f"mini_batch_{name}": v for name, v in first.items()})


def value(here: Setting, theta: PyTree) -> dict[str, float]:
    """What all patches say of theta, certified."""
    theta = jax.tree.map(lambda v: np.asarray(v, float), theta)
    eps = 1e-5 * here.given.clean.size**0.5
    found = bilevel.hypergradient(here.units(), theta, eps=eps, delta=1e9, solver=bilevel.LBFGS())
    return {"value": float(found.value), "value_error": float(found.value_error), "cost": found.counts.cost}


def of_mini_batches(log: record.Log, here: Setting) -> None:
    """The certificate that mini-batches lack, of the theta that they have found."""
    with np.load(log.path.with_suffix(".npz")) as file:
        theta = dict(file)
    value(here._replace(given=here.given.of(slice(SIZE))), theta)
    run = Run(log, VALUE, here)
    run.end(**value(here, theta))


def steps_of(here: Setting, rate: float) -> Iterator[PyTree]:
    """ISGD (arXiv 2412.12049): theta -= rate k^-Q z, z of a batch at x and q to eps0 k^-P, from where that batch was
    solved last; accuracies at k = 1 as those of the mini-batches."""
    rng, theta = np.random.default_rng(SEED), jax.tree.map(lambda v: jnp.asarray(v, np.float32), here.start)
    groups = learning.groups(len(here.given.clean), rng)
    batches = [learning.Weighed(here.given.of(group), REGULARISER) for group in groups]
    warm, order, size, k = [(None, None)] * len(batches), [], batches[0].data.size, 0
    while True:
        k, order = k + 1, order or list(rng.permutation(len(batches)))
        j, fall = order.pop(), k**-P
        found = bilevel.hypergradient(
            batches[j], theta, eps=4e-3 * size**0.5 * fall, delta=6e-3 * size**0.5 / SIZE * fall,
            x0=warm[j][0], q0=warm[j][1],
        )  # fmt: skip
        warm[j] = found.x, found.q
        theta = jax.tree.map(lambda v, z, step=rate * k**-Q: v - jnp.float32(step) * z, theta, found.gradient)
        yield theta


def isgd(log: record.Log, here: Setting, name: str, rate: float, budget: float, looks: int) -> None:
    next(steps_of(here._replace(given=here.given.of(slice(SIZE))), rate))
    run = Run(log, name, here, rate=rate, p=P, q=Q)
    run.judge(here.start, steps=0)
    for k, theta in enumerate(steps_of(here, rate), 1):
        spent, broken = run.clock.stop()["cpu_seconds"], not np.isfinite(np.sum(theta["weights"]))
        if spent >= budget or broken:
            break
        run.clock.go()
        if spent >= run.look * budget / looks:
            run.judge(theta, steps=k)
    f = np.inf
    if not broken:
        run.judge(theta, steps=k)
        f = record.read(log.path)[name].judged["f"][-1]
    end = {"steps": k, "f": f} | run.clock.stop()
    if looks > 1 and not broken:  # not timed
        end |= value(here, theta)
    run.end(**end)
