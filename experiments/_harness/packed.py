"""A log made small once its experiment has ended: columns for rows, few digits, and of many rows those that show.

    {"kind":"step","run":r,"k":0,"value":9.1}, {"kind":"step","run":r,"k":1,"value":8.9}, ...
    ->  {"kind":"step","run":r,"columns":{"k":[0,1,...],"value":[9.1,8.9,...]}}

An experiment adds a line at a time, so that nothing is lost where it is interrupted; `pack` then writes the whole log
again, and `read` takes either form. What a run has in common with the run before it (`ENVIRONMENT`) is written once, in
a line of kind "common".
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

LARGEST = 200_000  # bytes of a log
ENVIRONMENT = ("versions", "cores", "platform", "device")
PRECISE, DIGITS = ("value", "f", "low", "high", "valid_loss", "test_loss"), 12  # columns that tables read, digits
# (steps of a run, digits of other columns): the first that make the log small enough
SMALLER = ((1000, 6), (1000, 4), *((most, 4) for most in (128, 112, 96, 80, 64, 56, 48, 40, 32, 24, 16)), (16, 3))

Row = dict[str, Any]


class Lines(NamedTuple):
    """A run's lines as they were written: steps and judgements by their k; no last line where it is unfinished."""

    config: Row
    step: dict[int, Row]
    judged: dict[int, Row]
    end: dict[int, Row]


def read(path: str | os.PathLike) -> dict[str, Lines]:
    """The runs of a log by name; where a name, or a step of it, comes twice, the later one counts.

    A last line cut short is left out.
    """
    runs: dict[str, Lines] = {}
    common: Row = {}
    for text in Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        kind, run = line.pop("kind"), line.pop("run", None)
        if kind == "common":
            common = line
        elif kind == "config":
            runs[run] = Lines(common | line, {}, {}, {})
        elif run in runs:
            group = getattr(runs[run], kind)
            for row in _rows(line):
                group[row.get("k", len(group))] = row
    return runs


def pack(path: str | os.PathLike, keep: Mapping[str, set[int]] | None = None, largest: int = LARGEST) -> None:
    """Write a log again with at most `largest` bytes, or with as few as there can be.

    Of a run with too many steps half of those that stay are evenly spaced and half evenly in log k, as the axes of
    figures are; the first and the last, those that were judged and those of `keep[run]` stay whatever their number.
    """
    runs = read(path)
    for most, digits in SMALLER:
        lines = _lines(runs, keep or {}, most, digits)
        text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
        if len(text) <= largest:  # JSON is ASCII, a byte a letter
            break
    new = Path(path).with_suffix(".packed")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)


def _lines(runs: Mapping[str, Lines], keep: Mapping[str, set[int]], most: int, digits: int) -> Iterator[Row]:
    common: Row = {}
    for run, (config, step, judged, end) in runs.items():
        environment = {key: config[key] for key in ENVIRONMENT if key in config}
        if environment and environment != common:
            yield {"kind": "common", **(common := environment)}
        own = {key: value for key, value in config.items() if key not in common or value != common[key]}
        yield {"kind": "config", "run": run, **own}
        shown = spread(sorted(step), most) | judged.keys() | keep.get(run, set())
        for kind, rows in (("step", {k: step[k] for k in step.keys() & shown}), ("judged", judged)):
            if rows:
                places = {key: DIGITS if key in PRECISE else digits for key in rows[min(rows)]}
                columns = {key: [_short(rows[k][key], n) for k in sorted(rows)] for key, n in places.items()}
                yield {"kind": kind, "run": run, "columns": columns}
        for line in end.values():
            yield {"kind": "end", "run": run, **_clocks(line)}


def spread(ks: list[int], most: int) -> set[int]:
    """At most so many of them: half evenly spaced, half evenly in the logarithm of their place."""
    if len(ks) <= most:
        return set(ks)
    places = np.concatenate([np.linspace(1, len(ks), most // 2), np.geomspace(1, len(ks), most // 2)])
    return {ks[place - 1] for place in places.round().astype(int)}


def _rows(line: Row) -> Iterator[Row]:
    """One, or those of its columns."""
    columns = line.get("columns")
    if columns is None:
        yield line
    else:
        yield from (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))


def _clocks(row: Row) -> Row:
    """With few digits in what a clock said."""
    return {
        key: _clocks(value) if isinstance(value, dict) else _short(value, 6) if "seconds" in key else value
        for key, value in row.items()
    }


def _short(value: Any, digits: int) -> Any:
    if isinstance(value, dict):
        return {key: _short(v, digits) for key, v in value.items()}
    if isinstance(value, list):
        return [_short(v, digits) for v in value]
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value
