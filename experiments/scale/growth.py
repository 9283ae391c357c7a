"""What seconds, cost and memory do as the data grow: images, pixels of each, hyperparameters.

Total variation on crops of BSD400 in a file that is mapped, the noise made from the index, in units of at most 16
beside one whole stack; on two photographs of more and more pixels; ridge regression on 100 000 features whose
penalties get finer; 256 crops a process on one process and on two, each on a core of its own. Each run is a process
of its own, from the same start to the default tolerance (ridge: ten steps; several processes: six).
`make growth`.
"""

import tempfile
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from tqdm import tqdm

from bilevel.problems import data
from experiments._harness import console, record, style
from experiments.scale import growth_runs as runs

MIB = 2**20
COUNTS, SIDES, PENALTIES = (8, 64, 512, 2000), (96, 256, 512, 1024), (1, 100, 10_000, 100_000)
PROCESSES, EACH = (1, 2), 256
SMALL = {"images": (8, 16), "pixels": (24, 48), "penalties": (1, 20), "processes": (1, 2)}
SERIES = {
    "images, units": ("images", "#0072B2", "-"), "images, one stack": ("images", "#0072B2", ":"),
    "pixels, units": ("pixels", "#C1121F", "-"), "pixels, one stack": ("pixels", "#C1121F", ":"),
    "penalties": ("penalties", "#222222", "-"), "processes": ("processes", "#009E73", "-"),
}  # fmt: skip
NUMBERS = {"cpu": "seconds of processor", "cost": "gradients and products", "growth": "memory, MiB"}


def cases(path: Path, smoke: bool) -> dict[str, tuple[str, int, dict]]:
    """By name: of what, how many, and what is passed."""
    sizes = SMALL if smoke else {"images": COUNTS, "pixels": SIDES, "penalties": PENALTIES, "processes": PROCESSES}
    few = {"max_steps": 2} if smoke else {}
    made = {}
    for series, (of, _, _) in SERIES.items():
        chunked = {"chunked": series.endswith("units")} if of in ("images", "pixels") else {}
        for n in reversed(sizes[of]):  # what may fail first
            if of == "images":
                arguments = {"path": str(path), "count": n, "tol": None} | few
            elif of == "pixels":
                arguments = {"side": n} | few
            elif of == "processes":
                arguments = {"path": str(path), "each": 4 if smoke else EACH, "processes": n}
            else:
                arguments = {"count": n} | ({"features": 200} if smoke else {})
            made[f"{series}, {n}"] = of, n, arguments | chunked
    return made


def solve(log: record.Log, packaged: bool, smoke: bool) -> None:
    done = log.finished()
    for dtype in ("float32", "float64"):
        if (name := f"Fields of Experts, {dtype}") not in done:
            side, filters, taps = (32, 2, 3) if smoke else (256, 48, 7)
            log.write("config", name, side=side, filters=filters, taps=taps, **record.environment())
            log.write("end", name, **runs.experts(dtype, side, filters, taps))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "crops.npy")
        runs.write_crops(path, data.photographs(192).pixels if packaged else runs.bsd400(), 16 if smoke else COUNTS[-1])
        for name, (of, n, arguments) in tqdm(cases(path, smoke).items(), disable=None):
            if name not in done:
                log.write("config", name, of=of, n=n, packaged=packaged, **record.environment())
                log.write("end", name, of=of, n=n, **runs.in_a_process(of, **arguments))


def series(found: dict[str, record.Run], name: str) -> dict[str, np.ndarray]:
    """Columns by name, sorted by n; n counts pixels of an image where that is what grows."""
    rows = [run.end for key, run in found.items() if key.rsplit(", ", 1)[0] == name and "n" in run.end]
    rows.sort(key=lambda end: end["n"])
    columns = {key: np.array([end[key] for end in rows], float) for key in ("n", *NUMBERS, "value", "wall")}
    columns["n"] **= 1 + name.startswith("pixels")
    return columns | {"growth": columns["growth"] / MIB}


def slope(columns: dict[str, np.ndarray], name: str) -> float:
    """Of the log against the log, over the last three."""
    last = slice(-3, None)
    return np.polyfit(np.log(columns["n"][last]), np.log(np.maximum(columns[name][last], 1e-9)), 1)[0]


def report(found: dict[str, record.Run]) -> None:
    rows = []
    for name in SERIES:
        c = series(found, name)
        if len(c["n"]):
            slopes = [f"{slope(c, number):.2f}" for number in NUMBERS]
            ends = f"{c['cpu'][-1]:.1f}", f"{c['wall'][-1]:.1f}", f"{c['cost'][-1]:.0f}", f"{c['growth'][-1]:.0f}"
            rows.append((name, f"{c['n'][-1]:.0f}", *ends, *slopes))
    head = ("what grows", "to", "CPU s", "wall s", "cost", "MiB", "slope: CPU s", "cost", "MiB")
    print(console.table(head, rows))
    rows = [
        (name, *(f"{run.end[part] / MIB:.1f}" for part in ("argument", "output", "temp")))
        for name, run in found.items()
        if "temp" in run.end
    ]
    print("\n" + console.table(("hypergradient of one image, MiB", "arguments", "results", "temporaries"), rows))


def draw(found: dict[str, record.Run], beside: Path, figures: Path) -> None:
    style.use()
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.2))
    for ax, (number, label) in zip(axes, NUMBERS.items(), strict=True):
        for name, (_, ink, line) in SERIES.items():
            c = series(found, name)
            ax.loglog(c["n"], c[number], line, marker="o", ms=3, color=ink, label=name)
        ax.set(xlabel="images; pixels; penalties", ylabel=label)
    axes[1].legend(loc="lower right", fontsize=6.5)
    style.save(figure, f"{figures}.png")


if __name__ == "__main__":
    console.main("growth", __doc__.splitlines()[0], solve, report, draw, needs=runs.bsd400)
