"""The experiments' log: what is written is what is read, and an interrupted run goes on where it stood."""

import signal

import numpy as np
import pytest

import bilevel
from bilevel.problems.quadratic import uniform_data
from experiments._harness import packed, record, style


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


@pytest.fixture
def heard():
    """Ctrl-C, also where whoever began this run ignores it, as a shell does for what is in its background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
def test_interrupted_equals_uninterrupted(tmp_path):
    """Ctrl-C in its 25th step ends the experiment, not just the run; run again: the same log but for seconds, and no
    checkpoint left behind."""
    problem, theta0 = uniform_data(0), np.ones(10)
    runs, calls = {}, 0

    def judge(theta, x):
        nonlocal calls
        calls += 1
        if calls == stop:
            signal.raise_signal(signal.SIGINT)
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


def written(path, steps=2000):
    """Two runs of one machine: one that ended, with many steps, some of them judged, and one that was interrupted."""
    log = record.Log(path)
    for run in ("a", "b"):
        log.write("config", run, theta0=[1 / 3, 0.5], **record.environment())
        for k in range(1, steps + 1 if run == "a" else 3):
            log.write(
                "step", run, k=k, value=8 + 1 / (3 * k), theta=[1 / k, -1.0], eps=None if k == 1 else 1 / 3, cost=k
            )
            if k % 700 == 1 and run == "a":
                log.write("judged", run, k=k, value=8 + 1 / (3 * k))
    log.write(
        "end", "a", value=8 + 1e-14, theta=[1 / 3, -1.0], seconds=1 / 3, note={"cost": 3, "compile_seconds": 2 / 3}
    )
    return log


def test_packing_changes_digits_and_nothing_else(tmp_path):
    log = written(tmp_path / "log.jsonl", steps=900)
    before, size = record.read(log.path), log.path.stat().st_size
    packed.pack(log.path)
    after = record.read(log.path)
    assert log.path.stat().st_size < size / 2 and not list(tmp_path.glob("*.packed"))
    assert list(after) == ["a", "b"] and after["b"].end is None
    for run in before:
        assert after[run].config == before[run].config
        for old, new in ((before[run].steps, after[run].steps), (before[run].judged, after[run].judged)):
            assert list(old) == list(new)
            for key in old:
                np.testing.assert_allclose(new[key], old[key], rtol=5e-12 if key == "value" else 5e-6)
    short = {"seconds": 0.333333, "note": {"cost": 3, "compile_seconds": 0.666667}}
    assert after["a"].end == {**before["a"].end, **short}
    once = log.path.read_text()
    packed.pack(log.path)
    assert log.path.read_text() == once


def test_a_packed_log_goes_on(tmp_path):
    """Lines added to it count as they do in any log."""
    log = written(tmp_path / "log.jsonl", steps=3)
    packed.pack(log.path)
    log.write("step", "b", k=2, value=1.0, theta=[0.0, 0.0], eps=0.1, cost=7)
    log.write("config", "c", cores=-1)
    log.write("end", "c", value=2.0)
    runs = record.read(log.path)
    np.testing.assert_array_equal(runs["b"].steps["cost"], [1, 7])
    assert runs["c"].config["cores"] == -1 and log.finished() == {"a", "c"}
    packed.pack(log.path)
    np.testing.assert_equal(record.read(log.path), runs)


def test_of_too_many_steps_those_stay_that_show(tmp_path):
    log = written(tmp_path / "log.jsonl")
    packed.pack(log.path, keep={"a": {1234, 1235}}, largest=10_000)
    assert 5_000 < log.path.stat().st_size <= 10_000
    run = record.read(log.path)["a"]
    k = run.steps["k"]
    assert {1, 2, 3, 701, 1234, 1235, 1401, 2000} <= set(k)
    assert np.diff(k).max() < 60 and np.diff(np.log(k)).max() < np.log(2.1)
    np.testing.assert_array_equal(run.judged["k"], [1, 701, 1401])
    np.testing.assert_allclose(run.steps["value"], 8 + 1 / (3 * k), rtol=5e-12)


def test_pictures_come_back_to_one_grey_value(tmp_path):
    """Beyond [0, 1] they are cut; a name may be new, and the others stay as they were."""
    sheet = np.random.default_rng(0).uniform(-0.2, 1.2, (2, 7, 5))
    path = tmp_path / "pictures.png"
    assert style.load_pictures(path) == {}
    style.save_pictures(path, {"noisy": sheet})
    style.save_pictures(path, style.load_pictures(path) | {"clean": np.zeros((2, 7, 5))})
    pictures = style.load_pictures(path)
    assert list(pictures) == ["noisy", "clean"] and not pictures["clean"].any()
    np.testing.assert_allclose(pictures["noisy"], sheet.clip(0, 1), atol=0.5 / 255 + 1e-12)
