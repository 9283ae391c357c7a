"""A run from outside: how a person or a script ends it, what it hands back, what it shows."""

import io
import math
import pickle
import re
import signal
import sys
import threading
from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
from test_checkpoint import THETA0, assert_same, quadratic, solve

import bilevel
from bilevel import RESULTS, _run
from bilevel._outer.search import Judgement, Verdict
from bilevel.problems import Quadratic, TotalVariation

STOPPED = (
    "The callback returned True, so the run ended after that step. Its last point is returned, whose gradient is not "
    "known yet; with a checkpoint the run can go on."
)
INTERRUPTED = (
    "Ctrl-C was pressed, so the run ended after the step that was being made. Its last point is returned, whose "
    "gradient is not known yet; with a checkpoint the run can go on."
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.npz"


@pytest.fixture(autouse=True)
def handler():
    """Python's own handler of SIGINT, which every run puts back."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def press(at, times=1):
    """A callback during whose step `at` Ctrl-C is pressed."""

    def callback(state, info):
        if info.steps == at:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)

    return callback


def steps_on_disk(path):
    with np.load(path, allow_pickle=False) as file:
        return len(file["history/value"])


def test_ctrl_c_ends_the_run_after_its_step(path):
    """The point it reached, with what is known of it, and a checkpoint from which the run goes on to the same bits."""
    solution = solve(path, every=100, callback=press(2))
    assert solution.result == RESULTS.interrupted and solution.message == INTERRUPTED and not solution.converged
    whole = solve()
    assert solution.steps == 3 and len(solution.history["value"]) == len(solution.thetas) == 4
    np.testing.assert_array_equal(solution.thetas, whole.thetas[:4])
    np.testing.assert_array_equal(solution.theta, whole.thetas[3])
    assert math.isnan(solution.gradient_norm) and solution.gradient_error == math.inf
    assert steps_on_disk(path) == 3
    assert_same(solve(path, resume=True), whole)


def test_a_second_ctrl_c_raises_and_keeps_the_checkpoint(path):
    with pytest.raises(KeyboardInterrupt):
        solve(path, every=100, callback=press(2, times=2))
    assert steps_on_disk(path) == 2
    assert_same(solve(path, resume=True), solve())


@pytest.mark.parametrize("error", [RuntimeError, ValueError])
def test_the_handler_is_put_back_after_an_error(error, handler):
    def fail(state, info):
        assert signal.getsignal(signal.SIGINT) is not handler
        raise error

    with pytest.raises(error):
        solve(callback=fail)
    with pytest.raises(ValueError, match="does not pay"):
        solve(max_cost=0.5)
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize("other", [signal.SIG_IGN, lambda number, frame: None], ids=["ignored", "a script's own"])
def test_another_handler_is_put_back(other):
    """Where SIGINT is ignored, as for a job in the background, it stays ignored; a script's own handler comes back."""
    default = signal.signal(signal.SIGINT, other)
    try:
        solution = solve(callback=press(2))
        assert signal.getsignal(signal.SIGINT) is other
    finally:
        signal.signal(signal.SIGINT, default)
    assert solution.result == (RESULTS.max_steps_reached if other is signal.SIG_IGN else RESULTS.interrupted)


def pressed(times):
    """Ctrl-C so many times while its first program is traced, before that is compiled; a class of its own, so that it
    is."""

    class Pressed(Quadratic):
        def lower(self, x, theta):
            nonlocal times
            if times and signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
                times -= 1
                signal.raise_signal(signal.SIGINT)
            return super().lower(x, theta)

    problem = quadratic()
    return Pressed(problem.A1, problem.A2, problem.A3, problem.b1, problem.b2)


def test_ctrl_c_while_it_compiles(path):
    """The first: theta0 and what one solve of it tells, and a checkpoint. The second raises, and nothing is broken."""
    solution = solve(path, problem=pressed(1))
    assert solution.result == RESULTS.interrupted and solution.message == INTERRUPTED and solution.steps == 0
    np.testing.assert_array_equal(solution.thetas, THETA0[None])
    assert len(solution.history["value"]) == 1 and abs(solution.value) < math.inf
    assert steps_on_disk(path) == 0
    with pytest.raises(KeyboardInterrupt):
        solve(problem=pressed(2))


def test_in_another_thread_no_handler_is_installed(handler):
    seen = []

    def run():
        seen.append(solve(callback=lambda state, info: seen.append(signal.getsignal(signal.SIGINT))))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    solution = seen.pop()
    assert seen and all(there is handler for there in seen)
    assert_same(solution, solve())


def test_a_callback_that_returns_true_stops(path):
    solution = solve(path, every=100, callback=lambda state, info: info.steps == 2)
    assert solution.result == RESULTS.stopped and solution.message == STOPPED and solution.steps == 3
    assert steps_on_disk(path) == 3
    assert_same(solve(path, resume=True), solve())


def test_what_only_counts_as_true_does_not_stop():
    for answer in (1, "yes", np.ones(1, bool), np.False_):
        assert solve(max_steps=2, callback=lambda state, info, answer=answer: answer).steps == 2


def test_true_is_what_comparisons_of_arrays_give_too():
    for answer in (np.True_, jnp.asarray(True)):
        solution = solve(max_steps=2, callback=lambda state, info, answer=answer: answer)
        assert solution.result == RESULTS.stopped and solution.steps == 1


def test_the_reason_a_run_has_itself_counts():
    """A callback that says stop after the step that converged, or Ctrl-C then."""
    whole = solve(tol=1e-1, max_steps=100)
    assert whole.converged
    for stop in (lambda state, info: info.result is not None, press(whole.steps)):
        assert_same(solve(tol=1e-1, max_steps=100, callback=stop), whole)


def test_thetas_stand_beside_the_history():
    """Entry k is theta_k, whose value at x(theta_k) entry k of the history has; NumPy arrays of theta's structure."""
    seen = []
    solution = solve(callback=lambda state, info: seen.append(np.asarray(info.theta)))
    assert isinstance(solution.thetas, np.ndarray) and solution.thetas.shape == (len(solution.history["value"]), 3)
    np.testing.assert_array_equal(solution.thetas, seen)
    np.testing.assert_array_equal(solution.thetas[-1], solution.theta)
    values = np.array([quadratic().closed_form(jnp.asarray(theta)).value for theta in solution.thetas])
    assert np.all(np.abs(values - solution.history["value"]) <= solution.history["value_error"] + 1e-9)
    assert "theta" not in "".join(solution.history)


def test_too_many_thetas_are_not_kept(path, monkeypatch):
    """Nor written; and a run that is resumed has none either."""
    monkeypatch.setattr(_run, "MOST", 12)
    assert len(solve(max_steps=3).thetas) == 4
    ended = solve(path)
    assert ended.thetas is None and len(ended.history["value"]) == 7
    with np.load(path, allow_pickle=False) as file:
        assert not [name for name in file.files if "theta/" in name]
    monkeypatch.undo()
    assert solve(path, resume=True, max_steps=8).thetas is None


def test_the_state_is_kept_on_request():
    solution, other = solve(keep_state=True), solve()
    assert other.state is None and solution.state.steps == other.steps == 6
    assert solution.state.counts == solution.counts == other.counts and other.cost == sum(other.counts)
    assert solution.state.seconds == solution.seconds and other.seconds > 0
    (*_, (state, _)) = bilevel.iterate(quadratic(), THETA0, max_steps=7, state=solution.state)
    np.testing.assert_array_equal(state.theta, solve(max_steps=7).theta)


def test_a_pickled_solution_is_small():
    """Two hyperparameters over eight images of 48 x 48: at most twice x, and the same when it comes back."""
    clean = np.zeros((8, 48, 48))
    problem = TotalVariation(clean, clean + 0.1 * np.random.default_rng(0).standard_normal(clean.shape))
    solution = bilevel.solve(problem, np.array([-3.0, -3.0]), bilevel.maid(1.0, 1.0), max_steps=1)
    data = pickle.dumps(solution)
    assert len(data) <= 2 * solution.x.nbytes
    again = pickle.loads(data)
    assert_same(again, solution)
    assert repr(again) == repr(solution) and again.cost == solution.cost


def test_a_solution_prints_in_a_few_lines():
    solution = solve()
    number = r"-?[\d.]+(e[+-]\d+)?"
    lines = [
        "Solution: max_steps_reached", rf"  theta      \[{number}(, {number}){{2}}\]",
        rf"  value      {number} \+- {number}", rf"  gradient   {number} \+- {number}", "  certified  True",
        rf"  cost       {solution.cost} in 6 steps", rf"  seconds    {number}, and {number} compiling",
    ]  # fmt: skip
    for line, expected in zip(repr(solution).splitlines(), lines, strict=True):
        assert re.fullmatch(expected, line), line
    large = eqx.tree_at(lambda s: s.theta, solution, {"weights": jnp.ones((6, 2)), "scale": jnp.ones(())})
    assert "  theta      {'scale': f64[], 'weights': f64[6,2]}\n" in repr(large)
    small = eqx.tree_at(lambda s: s.theta, solution, {"weights": jnp.ones(2), "scale": jnp.ones(())})
    assert "  theta      {scale: 1., weights: [1., 1.]}\n" in repr(small)
    assert repr(jax.tree.map(lambda _: None, solution)).startswith("Solution(")


def test_a_solution_is_drawn():
    """The value with its interval and the gradient's norm with its bound, against cost, without the gap at the end."""
    solution = solve(callback=lambda state, info: info.steps == 3, tol=1e-3)
    above, below = solution.plot()
    history = solution.history
    np.testing.assert_array_equal(above.lines[0].get_xydata(), np.column_stack([history["cost"], history["value"]]))
    band = above.collections[0].get_paths()[0].vertices
    assert np.isclose(band[:, 1].max(), (history["value"] + history["value_error"]).max())
    drawn = np.column_stack([history["cost"], history["gradient_norm"]])[:-1]
    np.testing.assert_array_equal(below.lines[0].get_xydata(), drawn)
    assert below.get_yscale() == "log" and below.lines[1].get_ydata()[0] == 1e-3
    _, axes = plt.subplots(1, 2)
    assert solution.plot(axes) is axes and len(axes[1].lines) == 2
    with pytest.raises(ValueError, match="draws into two axes, not 1"):
        solution.plot(above)
    plt.close("all")


def test_drawing_needs_matplotlib(monkeypatch):
    solution = solve()
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"pip install 'bilevel\[plots\]'"):
        solution.plot()


class Terminal(io.StringIO):
    def isatty(self):
        return True


def notebook():
    """What IPython is in the kernel of a notebook."""
    return SimpleNamespace(get_ipython=lambda: SimpleNamespace(config={"IPKernelApp": {}}))


def ipython():
    """On a terminal, or none."""
    return SimpleNamespace(get_ipython=lambda: SimpleNamespace(config={"TerminalIPythonApp": {}}))


@pytest.mark.parametrize("stream, shell, shown", [
    (Terminal, None, True), (Terminal, ipython, True), (io.StringIO, notebook, True), (io.StringIO, ipython, False),
    (io.StringIO, None, False), (lambda: None, None, False),
])  # fmt: skip
def test_a_bar_on_a_terminal_and_in_a_notebook_and_nowhere_else(monkeypatch, stream, shell, shown):
    """Silent with progress=False everywhere; Ctrl-C is answered where there is a bar."""
    for progress in (True, False):
        stderr = stream()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", stderr)
            if shell is not None:
                patch.setitem(sys.modules, "IPython", shell())
            else:
                patch.delitem(sys.modules, "IPython", raising=False)
            solve(max_steps=3, progress=progress, callback=press(1))
        text = "" if stderr is None else stderr.getvalue()
        assert bool(text) == (shown and progress)
        assert not text or ("bilevel" in text and "step 1, value" in text and "Ctrl-C once more" in text)


def test_refining_the_base_is_not_charged_to_the_trial():
    """cap(trial) is of the trial's own cost; refining the base is work at theta_k, and the trial's at theta_{k+1}."""
    verdicts, seen = [Verdict.REFINE_BASE, Verdict.REFINE_TRIAL], []

    class Refining(bilevel.CertifiedBacktracking):
        def judge(self, memory, base, trial, slope, length):
            if not verdicts:
                return super().judge(memory, base, trial, slope, length)
            verdict = verdicts.pop(0)
            return Judgement(verdict, memory, (base if verdict is Verdict.REFINE_BASE else trial).eps / 100)

    class Recording(bilevel.Adjoint):
        def solve(self, base, trial, x, eps, cap, q):
            begun = base.meter.counts.cost
            point = super().solve(base, trial, x, eps, cap, q)
            seen.append((cap, begun, base.meter.counts.cost, base.memory.work))
            return point

    method = bilevel.Method(bilevel.Adaptive(1e-1, 1e-1), Refining(step=1e-2), gradient=Recording())
    state, info = next(bilevel.iterate(quadratic(), THETA0, method))
    (cap, begun, ended, work), (left, again, last, more) = seen
    assert info.result is None and state.steps == 1
    assert again > ended and left == cap - (ended - begun)
    assert more == work + again - ended and state.memory.work == ended - begun + last - again
