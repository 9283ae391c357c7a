"""What `devices` runs, each in a process of its own on one backend of JAX:

python -m experiments.scale.devices_runs cuda '{"case": "...", "dtype": "float32", "packaged": false, "steps": 6}'
"""

import json
import sys
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

import bilevel
from bilevel import problems, stn
from bilevel.problems import data, labelled
from experiments._harness import record
from experiments.benchmarks import bench_kernels
from experiments.networks import images as networks
from experiments.scale.growth_runs import bsd400

jax.config.update("jax_enable_x64", True)

TURNS = {"cpu": (2, 12)}  # of a kernel, in a short loop and in a long one; elsewhere:
MORE = 20, 220
CLASSES = 10


def pixels(packaged: bool, count: int, side: int) -> np.ndarray:
    return data.photographs(side).pixels if packaged else bsd400()[:count, :side, :side]


def total_variation(dtype: str, packaged: bool) -> tuple:
    clean = pixels(packaged, 400, 180).astype(dtype)
    noisy = clean + np.random.default_rng(0).standard_normal(clean.shape).astype(dtype) / 10
    return problems.TotalVariation(clean, noisy), np.array([-3.0, -3.0])


def fields_of_experts(dtype: str, packaged: bool) -> tuple:
    clean = pixels(packaged, 16, 96).astype(dtype)
    noisy = clean + np.random.default_rng(0).standard_normal(clean.shape).astype(dtype) / 10
    return problems.FieldsOfExperts(clean, noisy), problems.foe.initial(0, 48, 7)


def logistic(dtype: str, packaged: bool) -> tuple:
    digits = labelled.digits() if packaged else labelled.mnist().train
    train, valid = labelled.split(digits, (len(digits.labels) * 5 // 6, len(digits.labels) // 6), seed=0)
    sets = train.features.astype(dtype), train.labels, valid.features.astype(dtype), valid.labels
    return problems.LogisticRegression(*sets), np.full((train.features.shape[1], CLASSES), -4.0)


CASES = {"total variation": total_variation, "fields of experts": fields_of_experts, "logistic": logistic}


def learn(case: str, dtype: str, packaged: bool, steps: int) -> dict:
    """The first steps of the certified default, twice in one process: the second time everything is compiled."""
    problem, theta0 = CASES[case](dtype, packaged)
    theta0, found = jax.tree.map(lambda v: np.asarray(v, dtype), theta0), {}
    for kind in ("cold", "warm"):
        start = time.perf_counter()
        solution = bilevel.solve(problem, theta0, max_steps=steps, progress=False)
        found[kind] = time.perf_counter() - start
    theta = ravel_pytree(solution.theta)[0].tolist()
    values = np.asarray(solution.history["value"], np.float64).tolist()
    return record.summary(solution) | found | {"at": theta, "values": values}


def judge(case: str, packaged: bool, theta: list) -> dict:
    """f there, in float64."""
    problem, theta0 = CASES[case]("float64", packaged)
    theta = ravel_pytree(theta0)[1](np.array(theta))
    found = bilevel.solve(problem, theta, max_steps=0, max_cost=10_000, progress=False)
    return {"value": found.value, "value_error": found.value_error}


def seconds(program, *args) -> float:
    """The median of five."""
    jax.block_until_ready(program(*args))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(program(*args))
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def kernels(dtype: str, packaged: bool, shape=(400, 180, 180)) -> dict:
    """Bytes a second of total variation's kernels, and of a copy: its loop reads one array and writes one."""
    rng = np.random.default_rng(0)
    noisy, x = (jnp.asarray(rng.uniform(size=shape), dtype) for _ in range(2))
    theta, problem = jnp.asarray(bench_kernels.THETA, dtype), problems.TotalVariation(None, noisy)
    runs = {name: (kernel, bench_kernels.ARRAYS[name]) for name, kernel in bench_kernels.kernels().items()}
    runs["copy"] = lambda problem, theta, x, turns: jax.lax.fori_loop(0, turns, lambda _, v: v + theta[0], x), 2
    found, counts = {}, TURNS.get(jax.default_backend(), MORE)
    for name, (kernel, arrays) in runs.items():
        program = jax.jit(kernel)
        short, long = (seconds(program, problem, theta, x, jnp.int32(turns)) for turns in counts)
        found[name] = arrays * x.nbytes * (counts[1] - counts[0]) / (long - short)
    return {"rates": found}


def tune(dtype: str, packaged: bool, epochs: int) -> dict:
    """Epochs of a CNN with nine hyperparameters by Delta-STN; without those that compile it, seconds of one."""
    everything = labelled.digits(np.float32) if packaged else labelled.fashion_mnist(28, np.float32).train
    side = round(everything.features.shape[1] ** 0.5)
    everything = everything._replace(features=everything.features.reshape(-1, 1, side, side))
    count = len(everything.labels)
    train, valid = labelled.split(everything, (count * 5 // 6, count // 6), seed=0)
    one, two, key = jax.random.split(jax.random.key(0), 3)
    model = networks.CNN(side, one)
    converted = stn.convert(model, networks.space(model, side), key=two)
    times = [time.perf_counter()]
    run = stn.tune(
        converted, networks.space(model, side), networks.train_loss, networks.valid_loss, train, valid,
        stn.delta_stn(networks.ADAM["CNN"], hyper=optax.rmsprop(1e-2)), key=key, epochs=epochs,
        batch_size=networks.BATCH, progress=False, callback=lambda _: times.append(time.perf_counter()),
    )  # fmt: skip
    loss = float(eqx.filter_jit(networks.valid_loss)(eqx.nn.inference_mode(run.model), tuple(valid)))
    return {"cold": times[1] - times[0], "warm": float(np.median(np.diff(times)[1:])), "value": loss}


if __name__ == "__main__":
    jax.config.update("jax_platforms", sys.argv[1].replace("gpu", "cuda"))
    arguments = json.loads(sys.argv[2])
    case, judged = arguments.pop("case"), arguments.pop("judge", False)
    if judged:
        found = judge(case, **arguments)
    elif case in CASES:
        found = learn(case, **arguments)
    else:
        found = {"kernels": kernels, "tune": tune}[case](**arguments)
    found = {k: v if isinstance(v, list | dict | str) else np.asarray(v).tolist() for k, v in found.items()}
    print(json.dumps(found | ({} if judged else record.environment())))
