"""One of several processes, for `test_processes`: `python processes_for_tests.py rank count port case out [options]`.

Each has four devices over the number of processes; the data lie on a mesh of all of them.
"""

import json
import os
import sys
import time

import numpy as np

CASES = ("TV", "FoE", "logistic", "folds")


def arrays(case):
    rng = np.random.default_rng(0)
    if case in ("TV", "FoE"):
        clean = rng.uniform(0.2, 0.8, (4, 5, 1)) * np.ones((4, 5, 6))
        return clean, clean + 0.1 * rng.standard_normal(clean.shape)
    A, y = rng.standard_normal((40, 3)), np.arange(40) % 3
    A += np.eye(3)[y]
    return (A, y) if case == "folds" else (A, y, A[::-1].copy(), y[::-1].copy())


def made(case, data):
    """The problem and theta0."""
    from bilevel import problems

    if case == "TV":
        return problems.TotalVariation(*data), np.array([-3.0, -3.0])
    if case == "FoE":
        return problems.FieldsOfExperts(*data), problems.foe.initial(0, 2, 3)
    return problems.LogisticRegression(*data, folds=4 if case == "folds" else None), np.array(-2.0)


def tuned(data, **options):
    """A network on the rows, those to learn from and the others."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import optax

    from bilevel import stn

    def loss(model, batch):
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(batch[0]), batch[1]))

    space, key = stn.Space(decay=stn.Positive(1e-2)), jax.random.key(0)
    model = stn.convert(eqx.nn.MLP(3, 3, 4, 1, key=key), space, key=key)
    return stn.tune(
        model, space, lambda model, batch, hyper, _: loss(model, batch) + hyper["decay"] * stn.squared_norm(model),
        loss, data[:2], data[2:], key=key, epochs=3, batch_size=8, **options,
    )  # fmt: skip


def main(rank, count, port, case, out, options):
    flags = f"--xla_force_host_platform_device_count={4 // count}"
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), flags]).strip()
    import jax

    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if cache := os.environ.get("BILEVEL_TESTS_CACHE"):
        jax.config.update("jax_compilation_cache_dir", cache)
    if count > 1:
        jax.distributed.initialize(
            f"localhost:{port}", count, rank, heartbeat_timeout_seconds=options.pop("heartbeat", 100)
        )

    import equinox as eqx
    from jax.experimental.multihost_utils import process_allgather
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

    import bilevel
    from bilevel._processes import whole

    mesh = Mesh(np.array(jax.devices()), ("rows",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("rows"))
    data = [jax.make_array_from_callback(v.shape, rows, lambda index, v=v: v[index]) for v in arrays(case)]
    ends, asks = options.pop("ends", None), options.pop("asks", None)
    if "checkpoint" in options:
        options["checkpoint"] = options["checkpoint"].format(rank=rank)

    def callback(state, info):
        if ends == [rank, info.steps]:
            os._exit(9)
        return asks == [rank, info.steps]

    began = time.monotonic()
    if case == "stn":
        found = tuned(data, **options)
        leaves = [whole(v) for v in jax.tree.leaves(eqx.filter(found.model, eqx.is_array))]
        np.savez(f"{out}-{rank}.npz", *leaves, decay=found.values["decay"], loss=found.history["valid_loss"])
    else:
        problem, theta0 = made(case, data)
        solution = bilevel.solve(problem, theta0, progress=True, callback=callback, **options)
        x = process_allgather(solution.x, tiled=True)
        history = {name: v for name, v in solution.history.items() if name != "seconds"}
        theta = np.concatenate([np.ravel(whole(v)) for v in jax.tree.leaves(solution.theta)])
        np.savez(f"{out}-{rank}.npz", theta=theta, x=x, result=str(solution.message), **history)
    print(f"rank {rank} done in {time.monotonic() - began:.1f} s", flush=True)


if __name__ == "__main__":
    rank, count, port, case, out, *rest = sys.argv[1:]
    main(int(rank), int(count), port, case, out, json.loads(rest[0]) if rest else {})
