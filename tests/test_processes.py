"""Two processes of two devices each, on this machine: what one process finds; checkpoints; an end that all see."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import processes_for_tests
import pytest

import bilevel

SCRIPT = Path(processes_for_tests.__file__)


def run(out, case="TV", count=2, timeout=600, **options):
    """The exit codes and the errors of all processes, and the seconds until the last has ended."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(SCRIPT.parents[1])}
    began = time.monotonic()
    processes = [
        subprocess.Popen(
            [sys.executable, SCRIPT, str(rank), str(count), str(port), case, out, json.dumps(options)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(count)
    ]  # fmt: skip
    try:
        told = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], [err for _, err in told], time.monotonic() - began


def results(out, count=2):
    return [dict(np.load(f"{out}-{rank}.npz")) for rank in range(count)]


def finish(out, *args, **options):
    codes, errors, _ = run(str(out), *args, **options)
    assert not any(codes), errors
    return results(out, len(codes))


def reference(case, **options):
    problem, theta0 = processes_for_tests.made(case, processes_for_tests.arrays(case))
    return bilevel.solve(problem, theta0, **options)


def assert_near(found, one, case="TV"):
    """To 1e-10; of Fields of Experts, whose L-BFGS may stop an iteration earlier where sums are made in another order,
    x and the last value to what was asked for and told."""
    theta = np.concatenate([np.ravel(v) for v in jax.tree.leaves(one.theta)])
    np.testing.assert_allclose(np.ravel(found["theta"]), theta, rtol=0, atol=1e-10)
    values = one.history["value"]
    if case != "FoE":
        np.testing.assert_allclose(found["x"], one.x, rtol=0, atol=1e-10)
        np.testing.assert_allclose(found["value"], values, rtol=1e-10)
        return
    assert np.linalg.norm(found["x"] - one.x) <= 2 * one.history["eps"][-1]
    np.testing.assert_allclose(found["value"][:-1], values[:-1], rtol=1e-10)
    assert abs(found["value"][-1] - values[-1]) <= (found["value_error"] + one.history["value_error"])[-1]


def assert_same(one, other):
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_checkpoints_of_two_processes(tmp_path):
    """Two steps of two processes, with the same bits in both; the first one has written, and one process with all of
    the data goes on, to what it would have found alone."""
    path = tmp_path / "run.npz"
    two = finish(tmp_path / "a", max_steps=2, checkpoint=str(path))
    assert_same(*two)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a-0.npz", "a-1.npz", "run.npz"]
    resumed, whole = reference("TV", max_steps=5, checkpoint=path, resume=True), reference("TV", max_steps=5)
    assert_near({"theta": resumed.theta, "x": resumed.x, "value": resumed.history["value"]}, whole)
    np.testing.assert_allclose(resumed.x, whole.x, rtol=0, atol=1e-10)
    assert_near(two[0], reference("TV", max_steps=2))


@pytest.mark.full
@pytest.mark.parametrize("case", processes_for_tests.CASES)
def test_two_processes_find_what_one_finds(tmp_path, case):
    """The first five steps to 1e-10, and the end of the run: the same result, cost within 2 %."""
    two = finish(tmp_path / "a", case, max_steps=5)
    assert_same(*two)
    assert_near(two[0], reference(case, max_steps=5), case)
    steps = 10 if case == "FoE" else 60  # minutes
    (long, _), one = finish(tmp_path / "b", case, max_steps=steps), reference(case, max_steps=steps)
    assert str(long["result"]).split(".")[0] == one.message.split(".")[0]
    assert abs(long["cost"][-1] - one.cost) <= 0.02 * one.cost


@pytest.mark.full
def test_a_checkpoint_goes_on_under_other_processes(tmp_path):
    """Written by two, resumed by one process with four devices, by one with one, and by two; and the other way."""
    whole = reference("TV", max_steps=5)
    for count in (1, 2):
        path = tmp_path / f"by {count}.npz"
        finish(tmp_path / "a", count=count, max_steps=2, checkpoint=str(path))
        kept = path.read_bytes()
        for other in (1, 2):
            path.write_bytes(kept)
            found = finish(tmp_path / "b", count=other, max_steps=5, checkpoint=str(path), resume=True)
            assert_near(found[0], whole)
        path.write_bytes(kept)
        resumed = reference("TV", max_steps=5, checkpoint=path, resume=True)
        np.testing.assert_allclose(resumed.theta, whole.theta, rtol=0, atol=1e-10)


@pytest.mark.full
def test_a_callback_of_one_process_ends_all(tmp_path):
    """The second process's, at step 2."""
    two = finish(tmp_path / "a", max_steps=9, asks=[1, 2])
    assert_same(*two)
    assert "callback returned True" in str(two[0]["result"]) and len(two[0]["value"]) == 4


@pytest.mark.full
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_dies_ends_the_others(tmp_path, rank):
    """With an error, within its time-out of 10 seconds and what it takes to start; nobody waits for ever."""
    codes, errors, seconds = run(str(tmp_path / "a"), max_steps=9, ends=[rank, 2], heartbeat=10)
    assert codes[rank] == 9 and codes[1 - rank] not in (0, None), errors
    assert errors[1 - rank] and seconds < 90


@pytest.mark.full
def test_a_full_disk_is_told_in_every_process(tmp_path):
    """A name too long for the file beside it: both return what they have, with the result that says so."""
    two = finish(tmp_path / "a", max_steps=2, checkpoint=str(tmp_path / ("a" * 253)))
    assert_same(*two)
    assert "could not be written" in str(two[0]["result"])


@pytest.mark.full
def test_a_network_is_tuned_by_two_processes(tmp_path):
    """Data spread over both: weights, the hyperparameter and losses are those that one process finds, to 1e-10 in
    float64, and the same bits in both; the checkpoint of both goes on."""
    path = str(tmp_path / "run.npz")
    two = finish(tmp_path / "a", "stn", checkpoint=path)
    assert_same(*two)
    one = processes_for_tests.tuned(processes_for_tests.arrays("stn"))
    for k, leaf in enumerate(jax.tree.leaves(eqx.filter(one.model, eqx.is_array))):
        np.testing.assert_allclose(two[0][f"arr_{k}"], leaf, rtol=0, atol=1e-10)
    np.testing.assert_allclose(two[0]["decay"], one.values["decay"], rtol=1e-10)
    again = finish(tmp_path / "b", "stn", checkpoint=path, resume=True)
    assert_same(again[0], two[0])


@pytest.mark.full
def test_the_first_process_says_whether_there_is_a_checkpoint(tmp_path):
    """A file that only the second one sees, in a folder of its own: both start."""
    for rank in (0, 1):
        (tmp_path / str(rank)).mkdir()
    whole = finish(tmp_path / "a", max_steps=2, checkpoint=str(tmp_path / "1" / "run.npz"))
    path = str(tmp_path / "{rank}" / "run.npz")
    two = finish(tmp_path / "b", max_steps=2, checkpoint=path, resume="auto")
    assert_same(*two)
    assert_same(two[0], whole[0])
    assert (tmp_path / "0" / "run.npz").exists()
