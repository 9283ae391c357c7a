"""What `growth` measures, each run in a process of its own, whose memory is then its own, too."""

import json
import os
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from numpy.lib.format import open_memmap

import bilevel
from bilevel import problems
from bilevel._certificate import units
from bilevel.problems import data
from experiments._harness import record

jax.config.update("jax_enable_x64", True)

SIDE, SIGMA, SIZE, CHUNK = 96, 0.1, 16, 2
THETA = np.array([-3.0, -3.0])
FEATURES, ROWS = 100_000, 32


def bsd400() -> np.ndarray:
    """The 400 training images of BSD, 180 x 180, which the environment variable BILEVEL_DATA has."""
    folder = os.environ.get("BILEVEL_DATA")
    if folder is None or not Path(folder, "bsd400").is_dir():
        raise FileNotFoundError("BSD400 is not there: name the folder that holds it by BILEVEL_DATA.")
    return data.folder(Path(folder, "bsd400"), 180, how="crop").pixels


def write_crops(path: Path, images: np.ndarray, count: int) -> None:
    """Crops of the images, one from each in turn, as a file to be mapped: (count, 96, 96) float64."""
    rng, room = np.random.default_rng(0), images.shape[1] - SIDE
    crops = open_memmap(path, "w+", np.float64, (count, SIDE, SIDE))
    for k in range(count):
        i, j = rng.integers(0, room + 1, 2)
        crops[k] = images[k % len(images), i : i + SIDE, j : j + SIDE]
    crops.flush()


def noise(k: int, shape: tuple[int, ...] = (SIDE, SIDE)) -> np.ndarray:
    """A function of the index: nothing of it is stored."""
    return SIGMA * np.random.default_rng((1, k)).standard_normal(shape)


def pair(clean: np.ndarray, indices: range) -> problems.TotalVariation:
    clean = np.asarray(clean)
    return problems.TotalVariation(clean, clean + np.stack([noise(k, clean.shape[1:]) for k in indices]))


def images(path: str, count: int, chunked: bool, tol: float | None, max_steps: int = 1000) -> bilevel.Solution:
    """Total variation on so many crops of the file, in units of sixteen at most, or as one stack."""

    def mapped(indices: range) -> problems.TotalVariation:  # anew each time, or pages once read would count for ever
        return pair(np.load(path, mmap_mode="r")[indices.start : indices.stop], indices)

    numbers = range(count)
    problem = bilevel.Chunked(mapped, numbers, size=min(SIZE, count), chunk=CHUNK) if chunked else mapped(numbers)
    return bilevel.solve(problem, THETA, tol=tol, progress=False, max_steps=max_steps)


def pixels(side: int, chunked: bool, max_steps: int = 1000) -> bilevel.Solution:
    """Two photographs of side x side."""
    clean = data.photographs(side).pixels[:2]
    problem = bilevel.Chunked(pair, clean, range(2), chunk=1) if chunked else pair(clean, range(2))
    return bilevel.solve(problem, THETA, progress=False, max_steps=max_steps)


def penalties(count: int, features: int = FEATURES) -> bilevel.Solution:
    """Ridge regression with as many penalties, shared by equally many of always as many features; ten steps."""
    rng = np.random.default_rng(0)
    A, A_valid = rng.standard_normal((2, ROWS, features))
    x = rng.standard_normal(features) * (rng.uniform(size=features) < 0.01)
    y, y_valid = (V @ x + rng.standard_normal(ROWS) for V in (A, A_valid))
    groups = np.arange(features) * count // features
    problem = problems.LinearRegression(A, y, A_valid, y_valid, penalties=groups)
    return bilevel.solve(problem, np.zeros(count), progress=False, max_steps=10)


def spread(path: str, each: int) -> bilevel.Solution:
    """So many crops for every process, on a mesh of all of them."""
    count = each * jax.process_count()
    mesh = Mesh(np.array(jax.devices()), ("images",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("images"))
    mapped = np.load(path, mmap_mode="r")[:count]

    def part(index: tuple[slice, ...]) -> np.ndarray:
        return np.stack([mapped[k] + noise(k) for k in range(*index[0].indices(count))])

    clean = jax.make_array_from_callback(mapped.shape, rows, lambda index: mapped[index])
    problem = problems.TotalVariation(clean, jax.make_array_from_callback(mapped.shape, rows, part))
    return bilevel.solve(problem, THETA, progress=False, max_steps=6)


RUNS = {"images": images, "pixels": pixels, "penalties": penalties, "processes": spread}


def experts(dtype: str, side: int, filters: int, taps: int) -> dict[str, int]:
    """Bytes of the program of one image's hypergradient under Fields of Experts, as XLA has them; compiled, not run."""
    clean = data.photographs(side).pixels[:1].astype(dtype)
    problem = problems.FieldsOfExperts(clean, clean, boundary="reflect")
    theta = jax.tree.map(lambda v: jax.numpy.asarray(v, dtype), problems.foe.initial(0, filters, taps))
    x, few, number = problem.guess(theta), np.asarray(99, np.int32), np.ones((), dtype)
    with jax.default_matmul_precision("highest"):
        program = jax.jit(units.differentiate, static_argnums=(1, 9, 10)).lower(
            problem, bilevel.LBFGS(), theta, x, x, number, number, few, few, False, True
        )  # fmt: skip
    analysis = program.compile().memory_analysis()
    return {part: getattr(analysis, f"{part}_size_in_bytes") for part in ("argument", "output", "temp")}


def peak(now: bool = False) -> int:
    """The most memory that this process has held, in bytes, or what it holds `now`; the kernel's own count."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return 1024 * int(lines["VmRSS" if now else "VmHWM"].split()[0])


def measured(of: str, **arguments) -> dict:
    """In this process, once: growth of memory since everything was imported, seconds, and what was found."""
    jax.block_until_ready(jax.numpy.zeros(3) + 1)
    before, began, cpu = peak(now=True), time.perf_counter(), time.process_time()
    solution = RUNS[of](**arguments)
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    return record.summary(solution) | {"wall": wall, "cpu": cpu, "growth": peak() - before}


def in_a_process(of: str, processes: int = 1, **arguments) -> dict:
    """Or in several, which share the work, each on a core of its own: the first one's numbers, and the processor
    seconds of all."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        group = {"processes": processes, "port": free.getsockname()[1]}
    command = [sys.executable, "-m", __name__]
    started = [
        subprocess.Popen([*command, json.dumps({"of": of, **arguments}), json.dumps(group | {"rank": rank})],
                         stdout=subprocess.PIPE, text=True)
        for rank in range(processes)
    ]  # fmt: skip
    told = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise RuntimeError(f"{of} with {arguments} ended by itself")
    found = [json.loads(text.splitlines()[-1]) for text in told]
    return found[0] | {"cpu": sum(one["cpu"] for one in found)}


def join(of: str, processes: int, port: int, rank: int) -> None:
    """The others, before JAX starts."""
    if of == "processes" and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank % os.cpu_count()]})
    if processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"localhost:{port}", processes, rank)


if __name__ == "__main__":
    arguments, group = map(json.loads, sys.argv[1:])
    join(arguments["of"], **group)
    found = measured(**arguments)
    print(json.dumps({k: np.asarray(v).tolist() for k, v in found.items() if k != "theta"}))
