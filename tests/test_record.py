"""The experiments' log: what is written is what is read, and an interrupted run goes on where it stood."""

import sys
from pathlib import Path

import numpy as np
import pytest

import bilevel
from problems.quadratic import uniform_data

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))
import record


def test_the_later_line_counts_and_a_cut_one_is_left_out(tmp_path):
    log = record.Log(tmp_path / "log.jsonl")
    log.write("config", "a", size=np.int64(3))
    for k, value in ((0, 1.0), (1, 2.0), (1, 3.0), (2, np.nan)):
        log.write("step", "a", k=k, value=value)
    with open(log.path, "a") as file:
        file.write('{"kind": "end", "run": "a", "val')
    run = record.read(log.path)["a"]
    assert run.config == {"size": 3} and run.end is None and log.finished() == set()
    np.testing.assert_array_equal(run.steps["value"], [1, 3, np.nan])


def test_interrupted_equals_uninterrupted(tmp_path):
    """Stopped in its 25th step, then run again: the same log but for seconds, and no checkpoint left behind."""
    problem, theta0 = uniform_data(0), np.ones(10)
    runs, calls = {}, 0

    def judge(theta, x):
        nonlocal calls
        calls += 1
        if calls == stop:
            raise KeyboardInterrupt
        return {"norm": np.linalg.norm(theta)}

    for name, stop in (("whole", 0), ("cut", 9)):
        log, calls = record.Log(tmp_path / "logs" / f"{name}.jsonl"), 0
        arguments = (log, "maid", {}, problem, theta0, bilevel.maid())
        options = {"judge": judge, "max_cost": 1500, "max_steps": 1000, "tol": 0.0, "progress": False}
        if stop:
            with pytest.raises(KeyboardInterrupt):
                record.solve(*arguments, **options)
            assert log.finished() == set() and len(list(tmp_path.glob("checkpoints/*.npz"))) == 1
            assert len(record.read(log.path)["maid"].steps["k"]) > 5
        record.solve(*arguments, **options)
        runs[name] = record.read(log.path)["maid"]
    assert not list(tmp_path.glob("checkpoints/*.npz"))
    whole, cut = runs["whole"], runs["cut"]
    for key in whole.steps.keys() - {"seconds"}:
        np.testing.assert_array_equal(whole.steps[key], cut.steps[key])
    assert {**whole.end, "seconds": 0, "compile_seconds": 0} == {**cut.end, "seconds": 0, "compile_seconds": 0}
