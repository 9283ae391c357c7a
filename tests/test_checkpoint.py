"""Checkpoints: killed anywhere, resumed to the same bits; nothing saved before is lost; damage is named."""

import errno
import functools
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel
from bilevel import RESULTS
from bilevel import _checkpoint as checkpoints
from bilevel.problems import Quadratic

ROOT = Path(__file__).parent.parent
STEPS = 20
RUN = f"""
import sys, time
import jax
jax.config.update("jax_enable_x64", True)
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from test_checkpoint import THETA0, bilevel, quadratic, np
path, pause = sys.argv[1], float(sys.argv[2])
print("ready", flush=True)
solution = bilevel.solve(
    quadratic(), THETA0, max_steps={STEPS}, checkpoint=path, every=1, resume="auto",
    callback=lambda state, info: time.sleep(pause),
)
np.savez(path + ".end.npz", theta=solution.theta, x=solution.x, thetas=solution.thetas, **solution.history)
"""
THETA0 = np.full(3, 3.0)


def quadratic(seed=0):
    rng = np.random.default_rng(seed)
    A1, A2 = rng.standard_normal((2, 8, 4))
    return Quadratic(A1, A2, rng.standard_normal((8, 3)), *rng.standard_normal((2, 8)))


def solve(path=None, problem=None, theta0=THETA0, method=None, **options):
    problem = quadratic() if problem is None else problem
    return bilevel.solve(problem, jnp.asarray(theta0), method, **dict(max_steps=6, checkpoint=path, every=1) | options)


def assert_same(one, other):
    np.testing.assert_array_equal(one.theta, other.theta)
    np.testing.assert_array_equal(one.x, other.x)
    np.testing.assert_array_equal(one.thetas, other.thetas)
    assert one.result == other.result
    assert one.history.keys() == other.history.keys()
    for name in one.history.keys() - {"seconds"}:
        np.testing.assert_array_equal(one.history[name], other.history[name], err_msg=name)


def litter(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.npz"


def start(path, pause):
    return subprocess.Popen([sys.executable, "-c", RUN, str(path), str(pause)], stdout=subprocess.PIPE)


@pytest.mark.full
def test_sigkill_at_any_moment_loses_nothing(path):
    """Killed three times at random moments and started again, one unchanged script with resume="auto": the end equals
    the uninterrupted run's bit for bit."""
    chance = random.Random(0)
    for _ in range(3):
        process = start(path, 0.02)
        assert process.stdout.readline() == b"ready\n"
        deadline, before = time.monotonic() + 120, path.read_bytes() if path.exists() else None
        while not path.exists() or path.read_bytes() == before:  # at least one step further
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.08))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    process = start(path, 0.0)
    process.communicate(timeout=240)
    assert process.returncode == 0
    whole = solve(max_steps=STEPS)
    with np.load(f"{path}.end.npz", allow_pickle=False) as end:
        np.testing.assert_array_equal(end["theta"], whole.theta)
        np.testing.assert_array_equal(end["x"], whole.x)
        np.testing.assert_array_equal(end["thetas"], whole.thetas)
        for name in whole.history.keys() - {"seconds"}:
            np.testing.assert_array_equal(end[name], whole.history[name], err_msg=name)
        assert len(end["seconds"]) == len(whole.history["seconds"])


METHODS = {
    "maid": bilevel.maid(), "maid, 1": bilevel.maid(1, 1), "hoag": bilevel.hoag(),
    "fixed": bilevel.fixed_accuracy(1e-4), "default": bilevel.quasi_newton(), "default, 1": bilevel.quasi_newton(1, 1),
}  # fmt: skip
LONGER = [dict(max_steps=12), dict(max_steps=30, max_cost=200), dict(max_steps=30, tol=0.3)]
QUICK = [("maid", LONGER[2]), ("hoag", LONGER[0]), ("default", LONGER[0]), ("default", LONGER[1])]


@pytest.mark.parametrize(
    ("name", "longer"),
    [
        pytest.param(name, longer, marks=() if (name, longer) in QUICK else pytest.mark.full)
        for name in METHODS
        for longer in LONGER
    ],
)
def test_resume_with_larger_budgets_equals_the_long_run(path, name, longer):
    """A run that ended by its budget goes on as if the budget had been larger from the start."""
    longer, method = {"tol": 0.0} | longer, METHODS[name]
    for short in (dict(max_steps=5), dict(max_cost=40)):
        solve(path, method=method, tol=0.0, **short)
        assert_same(solve(path, method=method, resume=True, **longer), solve(method=method, **longer))
        path.unlink()


def test_resuming_a_finished_run_ends_the_same(path):
    """Nothing is appended, nothing changes."""
    first = solve(path)
    assert_same(solve(path, resume=True), first)
    assert_same(solve(path, resume="auto"), first)
    assert litter(path.parent) == ["run.npz"]


def test_the_file_is_plain_arrays(path):
    """np.load reads every entry without pickle; the history and the fingerprints are in it."""
    solution = solve(path)
    with np.load(path, allow_pickle=False) as file:
        entries = {name: file[name] for name in file.files}
    assert all(array.dtype != object for array in entries.values())
    np.testing.assert_array_equal(entries["history/value"], solution.history["value"][:-1])
    np.testing.assert_array_equal(entries["history/theta/0"], solution.thetas[:-1])
    assert "jax" in str(entries["fingerprint/versions"])


def test_a_missing_checkpoint_is_named(tmp_path):
    """ValueError with the path: a file that is not there, or a folder."""
    for path in (tmp_path / "nothing.npz", tmp_path):
        with pytest.raises(ValueError, match=f"no checkpoint at {path}"):
            solve(path, resume=True)


def test_a_checkpoint_whose_arrays_have_other_shapes_is_refused(path):
    """What an older version of the package kept under the same names."""
    solve(path, max_steps=2)
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    name = next(name for name, array in arrays.items() if name.startswith("state/") and array.ndim > 0)
    with open(path, "wb") as file:
        np.savez(file, **{**arrays, name: arrays[name][:1]})
    with pytest.raises(ValueError, match="another version"):
        solve(path, resume=True)
    with open(path, "wb") as file:
        np.savez(file, **arrays, **{f"state/{sum(name[:6] == 'state/' for name in arrays)}": np.zeros(3)})
    with pytest.raises(ValueError, match="another version"):
        solve(path, resume=True)


def test_a_damaged_checkpoint_is_named(path):
    """Truncated anywhere, bytes overwritten, garbage, empty, another kind of NumPy file, entries missing."""
    solve(path, max_steps=2)
    good = path.read_bytes()
    chance = random.Random(1)
    damaged = [good[: chance.randrange(len(good))] for _ in range(40)] + [b"", b"garbage" * 99, good[100:]]
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(ValueError, match="damaged"):
            solve(path, resume=True)
    for write in (
        lambda file: np.save(file, np.ones(3)), lambda file: np.save(file, np.array([{}]), allow_pickle=True),
        lambda file: np.savez(file, a=np.ones(3)),
    ):  # fmt: skip
        with open(path, "wb") as file:
            write(file)
        with pytest.raises(ValueError, match=r"checkpoint.*(damaged|another run)"):
            solve(path, resume=True)
    whole = solve(max_steps=4)
    for _ in range(60):  # one byte flipped: an error, or a file whose arrays are all still right
        data = bytearray(good)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
        try:
            resumed = solve(path, resume=True, max_steps=4)
        except ValueError as error:
            assert "checkpoint" in str(error)
        else:
            assert_same(resumed, whole)


@pytest.mark.parametrize("words, change", [
    ("data, theta0, x0 or bounds", dict(problem=quadratic(1))), ("data, theta0, x0 or bounds", dict(theta0=-THETA0)),
    ("data, theta0, x0 or bounds", dict(bounds=(-9.0, 9.0))), ("data, theta0, x0 or bounds", dict(x0=jnp.ones(4))),
    ("method", dict(method=bilevel.hoag())), ("method", dict(method=bilevel.maid(step=0.3))),
    ("method", dict(method=bilevel.maid(solver=bilevel.LBFGS()))),
])  # fmt: skip
def test_a_checkpoint_of_another_run_is_refused(path, words, change):
    """Other data, theta0, x0, box or method: ValueError that says which."""
    solve(path, max_steps=2)
    with pytest.raises(ValueError, match=f"another run, its {words} differ"):
        solve(path, resume=True, **change)


@pytest.mark.parametrize("library", [jax, np])
def test_a_checkpoint_of_other_versions_warns(path, monkeypatch, library):
    """Bits are only promised under the versions that wrote them; other data are refused all the same."""
    solve(path, max_steps=2)
    old = library.__version__
    monkeypatch.setattr(library, "__version__", "99.0.1")
    name = library.__name__
    with pytest.warns(UserWarning, match=rf"{name} {re.escape(old)}.* and this is .*{name} 99\.0\.1") as caught:
        resumed = solve(path, resume=True)
    assert "nor can it be told" not in str(caught[0].message)
    assert_same(resumed, solve())
    with pytest.raises(ValueError, match="another run, its data, theta0, x0 or bounds differ"):
        solve(path, resume=True, problem=quadratic(1))


def test_what_is_told_by_its_text_is_not_compared_across_versions(path):
    """JAX prints the same program in other words in other versions: `stn` says that it cannot tell."""
    wrote, now = {"method": "a", "data": "d", "versions": "jax 1"}, {"method": "b", "data": "d", "versions": "jax 2"}
    checkpoints.save(path, (jnp.ones(3), 4), {"value": [1.0]}, wrote)
    with pytest.warns(UserWarning, match="jax 1, and this is jax 2.*nor can it be told whether its method is"):
        state, history = checkpoints.load(path, (jnp.zeros(3), 0), now, fragile=["method"])
    np.testing.assert_array_equal(state[0], np.ones(3))
    assert state[1] == 4 and history == {"value": [1.0]}
    for prints, fragile in ((now, []), (now | {"versions": "jax 1"}, ["method"]), (now | {"data": "e"}, ["method"])):
        with pytest.raises(ValueError, match=r"another run, its (method|data) differ"):
            checkpoints.load(path, (jnp.zeros(3), 0), prints, fragile)


def test_a_fingerprint_is_of_structure_numbers_and_constants():
    """What differs in a name, a number, a dtype, a nesting or a function differs; equal trees agree."""
    trees = [
        {"a": np.ones(3)}, {"b": np.ones(3)}, {"a": np.ones(3, np.float32)}, {"a": np.ones((3, 1))}, [np.ones(3)],
        (np.ones(3),), [[np.ones(3)], []], [[], [np.ones(3)]], {"a": "reflect"}, {"a": np.sin}, {"a": np.cos}, None,
        bilevel.maid(), bilevel.hoag(), quadratic(), quadratic(1), jax.tree_util.Partial(max, 1.0),
        jax.tree_util.Partial(min, 1.0), bilevel.self_tuning(optax.adam(0.1)), bilevel.self_tuning(optax.adam(0.2)),
        bilevel.self_tuning(optax.sgd(0.1)), bilevel.self_tuning(optax.adam(lambda k: 0.1 / k)),
        bilevel.self_tuning(optax.adam(lambda k: 0.2 / k)), jax.jit(lambda x: 2 * x), jax.jit(lambda x: 3 * x),
        functools.partial(max, 1.0), functools.partial(max, 2.0), {"a", "b"}, {"a", "c"},
    ]  # fmt: skip
    prints = [checkpoints.fingerprint(tree, None, {})["data, theta0, x0 or bounds"] for tree in trees]
    assert len(set(prints)) == len(trees)
    assert checkpoints.fingerprint(None, bilevel.self_tuning(optax.adam(0.1)), {}) == checkpoints.fingerprint(
        None, bilevel.self_tuning(optax.adam(0.1)), {}
    )
    again = jax.tree.map(lambda leaf: jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf, trees)
    assert prints == [checkpoints.fingerprint(tree, None, {})["data, theta0, x0 or bounds"] for tree in again]


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_full_disk_keeps_the_old_checkpoint_and_the_solution(path, monkeypatch, where):
    """The result says so, the solution so far comes back, the old file is untouched, nothing half-written stays."""
    solve(path, max_steps=2)
    old = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, where, full_disk)
        solution = solve(path, resume=True)
    assert solution.result == RESULTS.checkpoint_failed and not solution.converged
    assert path.read_bytes() == old and litter(path.parent) == ["run.npz"]
    whole = solve()
    steps = len(solution.history["value"]) - 1
    values, expected = solution.history["value"], whole.history["value"]
    assert 2 < steps + 1 <= 6 and np.all(values[:steps] == expected[:steps])
    # the last point's gradient is not known yet, nor what it would have said of the value
    assert abs(values[-1] - expected[steps]) <= solution.value_error + whole.history["value_error"][steps]
    assert_same(solve(path, resume=True), whole)


def test_a_disk_that_fills_only_at_the_end_keeps_the_solution(path, monkeypatch):
    """The last save fails, not one on the way: same result, the whole solution."""
    monkeypatch.setattr(os, "fsync", full_disk)
    solution = solve(path, every=100)
    assert solution.result == RESULTS.checkpoint_failed
    np.testing.assert_array_equal(solution.theta, solve().theta)
    assert litter(path.parent) == []


def test_a_file_size_limit_is_a_full_disk(path):
    """The operating system itself refuses to write, in a process of its own."""
    code = RUN.replace('print("ready"', "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n#")
    code = code.split("np.savez")[0] + "\nprint(bilevel.RESULTS[solution.result])"
    solve(path, max_steps=2)
    old = path.read_bytes()
    assert len(old) > 2000
    arguments = [sys.executable, "-W", "error", "-c", code, str(path), "0"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=240)
    assert done.stdout.startswith("The checkpoint could not be written"), done.stdout + done.stderr
    assert path.read_bytes() == old and litter(path.parent) == ["run.npz"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_callback_leaves_a_good_checkpoint(path, error):
    """Even if the next regular save was far away, the run resumes to the same bits."""

    def interrupt(state, info):
        if info.steps == 3:
            raise error

    with pytest.raises(error):
        solve(path, every=100, callback=interrupt)
    with np.load(path, allow_pickle=False) as file:
        assert len(file["history/value"]) == 3
    assert_same(solve(path, resume=True), solve())


def test_checkpoints_come_every_so_many_steps(path):
    """every=3: the file on disk is never more than three accepted steps old."""
    ages = []

    def look(state, info):
        if path.exists():
            with np.load(path, allow_pickle=False) as file:
                ages.append(info.steps - len(file["history/value"]))

    solve(path, every=3, max_steps=10, callback=look)
    assert max(ages) == 2 and min(ages) == 0


def test_nothing_is_overwritten_unasked(path):
    """ValueError before anything is computed, the file untouched; overwrite=True starts afresh and does not read it."""
    path.write_bytes(b"garbage")
    with pytest.raises(ValueError, match=r"would be overwritten: pass resume=True .*overwrite=True to start afresh"):
        solve(path)
    assert path.read_bytes() == b"garbage"
    assert_same(solve(path, overwrite=True), solve())
    assert_same(solve(path, resume=True), solve())
    with pytest.raises(ValueError, match="a folder: name a file in it"):
        solve(path.parent)


@pytest.mark.parametrize("options, words", [
    (dict(resume="yes"), 'resume must be False, True or "auto"'), (dict(resume="auto"), "pass checkpoint=path"),
    (dict(overwrite=True), "pass checkpoint=path"), (dict(resume=True, overwrite=True), "pass one of them"),
    (dict(resume="auto", overwrite=True), "pass one of them"),
])  # fmt: skip
def test_options_that_contradict_each_other_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        solve(**options)


def test_auto_starts_where_there_is_nothing_and_goes_on_where_there_is(path):
    """The same call, three times: it starts, goes on, and ends the same."""
    whole = solve()
    for steps in (3, 6, 6):
        ended = solve(path, resume="auto", max_steps=steps)
    assert_same(ended, whole)
    with pytest.raises(ValueError, match="another run, its method differ"):
        solve(path, resume="auto", method=bilevel.maid())
