"""The console: an experiment's command line, and the tables that it prints."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments._harness import packed, record

EXPERIMENTS = Path(__file__).parents[1]  # holds the folders logs and figures


def main(
    name: str,
    description: str,
    solve: Callable[[record.Log, bool, bool], None],
    report: Callable[[dict[str, record.Run]], None],
    draw: Callable[[dict[str, record.Run], Path, Path], None],
    *,
    needs: Callable[[], Any] | None = None,
    keep: Callable[[dict[str, record.Run]], Mapping[str, set[int]]] | None = None,
) -> None:
    """The command line of an experiment: `solve(log, packaged, smoke)`, `report(runs)`, then `draw(runs, beside,
    figures)`, figures' names beginning with `figures`, and `beside` what was saved next to the log, without suffix.

    `needs()` loads the paper's data and raises FileNotFoundError where they are missing; then, and with --smoke, the
    experiment runs on packaged data and says so. `keep(runs)`: by run, the k of steps that the tables read one by one,
    so that they stay in the log.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--smoke", action="store_true", help="small, packaged data, few iterations: does it run?")
    parser.add_argument("--resume", action="store_true", help="keep the runs that are in the log, go on with the last")
    parser.add_argument("--draw", action="store_true", help="tables and figures from the log, without solving")
    arguments = parser.parse_args()
    packaged = needs is not None and arguments.smoke
    if needs is not None and not packaged:
        try:
            needs()
        except FileNotFoundError as error:
            packaged = not arguments.draw
            print(f"{error}\n" * packaged + "So this runs on what scikit-image and scikit-learn carry.\n" * packaged)
    place = EXPERIMENTS / "smoke" if arguments.smoke else EXPERIMENTS
    stem = f"{name}_packaged" if packaged and not arguments.smoke else name
    log = record.Log(place / "logs" / f"{stem}.jsonl", fresh=not (arguments.resume or arguments.draw))
    if not arguments.draw:
        solve(log, packaged, arguments.smoke)
        packed.pack(log.path, {} if keep is None else keep(record.ended(log)))
    runs = record.ended(log)
    if not runs:
        raise SystemExit(f"No finished run in {log.path.name}: run without --draw")
    report(runs)
    (place / "figures").mkdir(exist_ok=True)
    draw(runs, log.path.with_suffix(""), place / "figures" / stem)


def table(header: tuple[str, ...], rows: list[tuple]) -> str:
    """Columns of text: the first to the left, the others to the right."""
    cells = [tuple(map(str, row)) for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    ]
    return "\n".join(line.rstrip() for line in (lines[0], "-" * len(lines[0]), *lines[1:]))


def spread(numbers: Any, digits: int) -> str:
    """Mean and standard deviation."""
    return f"{np.mean(numbers):.{digits}f} ± {np.std(numbers, ddof=min(1, len(numbers) - 1)):.{digits}f}"
