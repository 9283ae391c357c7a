"""The outer loop: true decrease, true intervals, faithful rules, budgets kept, boxes respected."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel
from bilevel import RESULTS
from bilevel._outer.accuracy import Asked
from bilevel._outer.programs import Meter
from bilevel._outer.reached import Interval, Per, Reached
from bilevel._outer.search import Judgement, Step, Verdict
from bilevel.problems import Quadratic, TotalVariation

ONES = jnp.ones(3)


def quadratic(seed=0):
    rng = np.random.default_rng(seed)
    A1, A2 = rng.standard_normal((2, 8, 4))
    return Quadratic(A1, A2, rng.standard_normal((8, 3)), *rng.standard_normal((2, 8)))


def denoising(seed=0):
    rng = np.random.default_rng(seed)
    clean = np.clip(rng.integers(0, 2, (2, 4, 1)) * 0.6 + 0.2 + np.zeros((2, 4, 4)), 0, 1)
    return TotalVariation(clean, clean + 0.1 * rng.standard_normal(clean.shape))


def tv_truth(problem, theta):
    """f and grad f of small TV problems by dense damped Newton in NumPy, sharing no code with the package."""
    clean, noisy = np.asarray(problem.clean), np.asarray(problem.noisy)
    n, height, width = noisy.shape
    right, down = np.eye(width, k=1)[:-1] - np.eye(width)[:-1], np.eye(height, k=1)[:-1] - np.eye(height)[:-1]
    D = np.vstack([np.kron(np.eye(height), right), np.kron(down, np.eye(width))])
    zeros = 2 * height * width - len(D)  # differences at the border are 0, their roots still count as nu
    w, nu = math.exp(theta[0]) / 2, math.exp(theta[1])
    f, gradient = 0.0, np.zeros(2)
    for c, y in zip(clean.reshape(n, -1), noisy.reshape(n, -1), strict=True):

        def parts(x, y=y):
            s = np.sqrt((D @ x) ** 2 + nu**2)
            return ((x - y) @ (x - y)) / 2 + w * (s.sum() + zeros * nu), x - y + w * D.T @ (D @ x / s), s

        x = y
        for _ in range(200):
            _, rho, s = parts(x)
            H = np.eye(len(x)) + w * D.T @ ((nu**2 / s**3)[:, None] * D)
            d, t = np.linalg.solve(H, rho), 1.0
            while t > 1e-8 and np.linalg.norm(parts(x - t * d)[1]) > np.linalg.norm(rho):
                t /= 2
            if np.linalg.norm(rho) < 1e-14 or t <= 1e-8:
                break
            x = x - t * d
        assert np.linalg.norm(parts(x)[1]) < 1e-12
        J = np.stack([w * D.T @ (D @ x / s), -w * nu**2 * D.T @ (D @ x / s**3)])
        f += ((x - c) @ (x - c)) / 2 / n
        gradient -= J @ np.linalg.solve(H, x - c) / n
    return f, gradient


def quadratic_truth(problem, theta):
    truth = problem.closed_form(jnp.asarray(theta))
    return truth.value, truth.gradient


def run(problem, theta0, method, **options):
    """The solution's pieces by `iterate`: every theta_k and every info."""
    thetas, infos = [jnp.asarray(theta0)], []
    for state, info in bilevel.iterate(problem, theta0, method, **options):
        infos.append(info)
        if info.result is None:
            thetas.append(state.theta)
    return thetas, infos


def check_truth(problem, truth, thetas, infos):
    """f falls at every accepted step, and lies in every interval; so does the norm of grad f."""
    assert len(thetas) == len(infos)
    values, gradients = zip(*(truth(problem, np.asarray(theta)) for theta in thetas), strict=True)
    for before, after in itertools.pairwise(values):
        assert after <= before + max(1e-12, 1e-15 * abs(before))
    for info, value, gradient in zip(infos, values, gradients, strict=True):
        assert abs(info.value - value) <= info.value_error + 1e-13 * abs(value)
        if info.certificate != "none":
            assert abs(info.gradient_norm - np.linalg.norm(gradient)) <= info.gradient_error * (1 + 1e-9) + 1e-12


@pytest.mark.parametrize("eps, delta, step", [
    (None, None, None), (1e2, 1e2, 1.0), (1e2, 1e-3, 100.0), (1e-3, 1e2, 1e-3), (1e-2, 1e-2, 1e6), (1e-9, 1e-9, 0.1),
])  # fmt: skip
@pytest.mark.parametrize("seed", [0, 1])
def test_maid_decreases_the_true_f_from_any_first_accuracy_and_step(eps, delta, step, seed):
    """Quadratic, against the closed form."""
    problem = quadratic(seed)
    thetas, infos = run(problem, 3 * ONES, bilevel.maid(eps, delta, step), max_steps=12)
    assert len(thetas) == 13
    check_truth(problem, quadratic_truth, thetas, infos)


@pytest.mark.parametrize("theta0", [1e3, 1e6, -1e6])
def test_maid_comes_back_from_far_away(theta0):
    """A start 1e6 away: certified decrease all the way to the optimum's neighbourhood."""
    problem = quadratic()
    thetas, infos = run(problem, theta0 * ONES, bilevel.maid(step=1.0), max_steps=25)
    check_truth(problem, quadratic_truth, thetas, infos)
    assert infos[-1].value < 0.1 * infos[0].value


@pytest.mark.parametrize("eps", [1e-1, 1e-3, 1e-6])
def test_fixed_accuracy_decreases_the_true_f(eps):
    """The same acceptance at accuracies that never change."""
    problem = quadratic()
    thetas, infos = run(problem, 3 * ONES, bilevel.fixed_accuracy(eps), max_steps=12)
    check_truth(problem, quadratic_truth, thetas, infos)
    assert len(thetas) > 2


@pytest.mark.parametrize("method", [
    bilevel.maid(), bilevel.maid(1e2, 1e2, 100.0), bilevel.maid(1e-4, 1e-4, 1e-2), bilevel.fixed_accuracy(1e-3),
    bilevel.quasi_newton(),
])  # fmt: skip
def test_total_variation_decreases_the_true_f(method):
    """A problem with L_H, L_J > 0, against a dense Newton solve."""
    problem = denoising()
    thetas, infos = run(problem, jnp.array([-4.0, -3.0]), method, max_steps=10)
    check_truth(problem, tv_truth, thetas, infos)
    assert len(thetas) > 2


def test_a_certificate_that_lies_would_be_seen():
    """The checks above fail if the intervals are empty: no error is claimed, eps is wide."""
    problem = quadratic()
    thetas, infos = run(problem, 3 * ONES, bilevel.maid(1e2, 1e2, 1.0), max_steps=3)
    with pytest.raises(AssertionError):
        check_truth(problem, quadratic_truth, thetas, [info._replace(value_error=0.0) for info in infos])


# --- the rules, as published


def test_adaptive_accuracy_has_the_published_factors():
    """nu = 0.5 on a failure, nu_bar = 1.05 on acceptance, eta = 1e-4; a plain rejection changes nothing."""
    rule = bilevel.maid(0.8, 0.4).accuracy
    start = rule.init(123.0, 456.0, 789.0)
    assert (start.eps, start.delta) == (0.8, 0.4)
    seen = reached(norm=1.0, omega=1.0)
    for after, factor in (
        (rule.tighten(start, seen, rule.wanted(start, seen), 0), 0.5), (rule.harder(start, False, True), 0.5),
        (rule.rejected(start), 1.0), (rule.accepted(start), 1.05),
    ):  # fmt: skip
        assert (after.eps, after.delta) == (0.8 * factor, 0.4 * factor)
    assert rule.wanted(start, seen) == 1 - 1e-4


def test_accuracies_left_out_are_chosen_from_the_problem():
    """A tenth of the starting error and of ||grad_x g||; a start solved already takes a thousandth of the value."""
    start = bilevel.maid().accuracy.init(50.0, 2.0, 3.0)
    assert (start.eps, start.delta) == (5.0, 0.2)
    assert bilevel.maid().accuracy.init(0.0, 2.0, 3.0).eps == 1.5e-3


ANY = Asked(1.0, 1.0)


def reached(norm, omega):
    return Reached(1.0, 1.0, norm, norm, omega, Per(1.0, 1.0, 0.0, 0.0), 0.0, 1.0, 0.0)


def interval(low, high):
    return Interval(low, (low + high) / 2, high, (high - low) / 2, 1.0, False, ANY)


def test_backtracking_accepts_only_separated_intervals():
    """upper(trial) - lower(base) <= -lambda alpha ||z||^2, lambda = 1e-8; then alpha *= 10/9 and the count restarts."""
    rule = bilevel.maid(step=2.0).search
    base, memory = interval(9.0, 11.0), Step(2.0, 8.0, 3, 10)
    verdict, after, _ = rule.judge(memory, base, interval(8.0, 8.9), 8.0, length=4.0)
    assert verdict is Verdict.ACCEPT
    assert after == Step(2.0 * 10 / 9, 2.0 * 10 / 9, 0, 10)
    needed = 1e-8 * 2.0 * (4.0 / 2.0) ** 2  # lambda alpha ||z||^2, ||z|| = length / alpha
    assert rule.judge(memory, base, interval(0, 9 - 1.01 * needed), 8.0, 4.0)[0] is Verdict.ACCEPT
    assert rule.judge(memory, base, interval(0, 9 - 0.99 * needed), 8.0, 4.0)[0] is Verdict.SHRINK
    assert rule.judge(memory, base, interval(8.0, 9.5), 8.0, 4.0)[0] is Verdict.SHRINK  # they overlap


def test_backtracking_follows_the_published_script():
    """rho = 0.5, ten trials, then accuracy is asked for; again from the first step with one trial more each time."""
    rule = bilevel.maid(step=1.0).search
    memory = rule.first(rule.init(1.0), bilevel.Heading(), length=7.0, norm=7.0, size=3)
    base, worse, better = interval(9.0, 11.0), interval(12.0, 13.0), interval(1.0, 2.0)
    for allowed in (10, 11, 12):
        assert memory == Step(1.0, 1.0, 0, allowed)
        for k in range(allowed - 1):
            verdict, memory, _ = rule.judge(memory, base, worse, 1.0, 1.0)
            assert verdict is Verdict.SHRINK and memory.alpha == 0.5 ** (k + 1)
        verdict, memory, _ = rule.judge(memory, base, worse, 1.0, 1.0)
        assert verdict is Verdict.TIGHTEN
    verdict, memory, _ = rule.judge(memory, base, better, 1.0, 1.0)
    assert verdict is Verdict.ACCEPT and memory.allowed == 10


def test_a_capped_trial_costs_a_tenth_of_the_step_and_no_count():
    """alpha *= 0.1, not counted among the ten, and no restart goes back to the step that was capped."""
    rule = bilevel.maid(step=1e6).search
    verdict, memory, _ = rule.judge(Step(1e6, 1e6, 4, 10), interval(1, 2), None, 1.0, 1.0)
    assert verdict is Verdict.SHRINK
    assert memory == Step(0.1 * 1e6, 0.1 * 1e6, 4, 10)


def test_first_step_moves_each_hyperparameter_by_one():
    """sqrt(d) / ||z||, unless a step is given or z is zero."""
    for step, norm, alpha in ((None, 4.0, 0.75), (2.5, 4.0, 2.5), (None, 0.0, 1.0)):
        rule = bilevel.maid(step=step).search
        assert rule.first(rule.init(1.0), bilevel.Heading(), length=norm, norm=norm, size=9).alpha == alpha


def test_hoag_heuristic_has_its_three_branches():
    """With C = 0.25, Lam = 1/step, c the length of the step: reward, reject at 1.2 times worse, or just accept."""
    rule = bilevel.hoag(step=0.5).search
    memory, length = rule.first(rule.init(1.0), bilevel.Heading(), 1.0, 1.0, 4), 0.1
    base = interval(0, 20.0)._replace(value=10.0, asked=ANY._replace(tolerance=0.2))
    trial = interval(0, 20.0)._replace(asked=ANY._replace(tolerance=0.1))
    bound = 10.0 + 0.25 * 0.1 + 0.2 * 1.25 * length - 2.0 * length**2
    for value, verdict, step in (
        (bound - 1e-9, Verdict.ACCEPT, 0.5 / 0.95), (bound + 1e-9, Verdict.ACCEPT, 0.5), (11.99, Verdict.ACCEPT, 0.5),
        (12.01, Verdict.SHRINK, 0.25),
    ):  # fmt: skip
        answer, after, _ = rule.judge(memory, base, trial._replace(value=value), 1.0, length)
        assert answer is verdict and after.alpha == pytest.approx(step, rel=1e-15)
    assert rule.judge(memory, base, None, 1.0, length)[0] is Verdict.SHRINK


@pytest.mark.parametrize("schedule, expected", [
    (bilevel.Geometric(0.9), lambda k: 0.9**k), (bilevel.Polynomial(2), lambda k: (k + 1) ** -2.0),
    (bilevel.Polynomial(3), lambda k: (k + 1) ** -3.0),
])  # fmt: skip
def test_scheduled_accuracy_falls_with_accepted_steps_and_halves_at_rejections(schedule, expected):
    """tolerance_k = 0.1 s(k) 2^-rejections, eps and delta in units of the first errors; a trial gets the next one."""
    rule = bilevel.hoag(schedule).accuracy
    accuracy = rule.init(error=4.0, norm_g_x=3.0, value=1.0)
    for k in range(5):
        tolerance = 0.1 * expected(k)
        assert accuracy[:3] == pytest.approx((4 * tolerance, 3 * tolerance, tolerance), rel=1e-14)
        assert rule.trial(accuracy).tolerance == pytest.approx(0.1 * expected(k + 1), rel=1e-14)
        accuracy = rule.accepted(accuracy)
    rejected = rule.rejected(accuracy)
    assert rejected.tolerance == pytest.approx(0.05 * expected(5), rel=1e-14)
    assert rule.accepted(rejected).tolerance == pytest.approx(0.05 * expected(6), rel=1e-14)
    assert rule.wanted(rejected, reached(1.0, 1e9)) == math.inf


@pytest.mark.parametrize("schedule", [bilevel.Geometric(0.9), bilevel.Polynomial(2), bilevel.Polynomial(3)])
def test_hoag_reaches_the_optimum(schedule):
    """Its accuracies follow the schedule in a run, its numbers are certified, and it gets there."""
    problem = quadratic()
    thetas, infos = run(problem, 3 * ONES, bilevel.hoag(schedule), max_steps=40)
    first = bilevel.solve_lower(problem, 3 * ONES, eps=1e9)
    for k, info in enumerate(infos):
        assert info.eps <= 0.1 * schedule(k) * float(first.error) * (1 + 1e-9)
        value, gradient = quadratic_truth(problem, thetas[k])
        assert abs(info.value - value) <= info.value_error
        assert abs(info.gradient_norm - np.linalg.norm(gradient)) <= info.gradient_error + 1e-12
    assert infos[-1].gradient_norm < 0.05 * infos[0].gradient_norm


class Script(bilevel.CertifiedBacktracking):
    """Answers from a script and writes down the base that it was shown."""

    answers: list = None
    seen: list = None

    def judge(self, memory, base, trial, slope, length):
        self.seen.append((base, trial, memory.alpha, length))
        return Judgement(self.answers.pop(0), memory)


class Diary(bilevel.Adaptive):
    """Adaptive, and writes down what happened."""

    events: list = None

    def tighten(self, asked, reached, wanted, tries):
        self.events.append("tighten")
        return super().tighten(asked, reached, wanted, tries)

    def rejected(self, asked):
        self.events.append("rejected")
        return super().rejected(asked)

    def harder(self, asked, floor, judged):
        self.events.append("harder")
        return super().harder(asked, floor, judged)

    def accepted(self, asked):
        self.events.append("accepted")
        return super().accepted(asked)


def test_one_step_runs_as_designed():
    """A shrink leaves base and accuracy alone; a tighten halves eps and delta and evaluates the base again; only an
    acceptance moves theta."""
    problem = quadratic()
    line = Script(1e-3, answers=[Verdict.SHRINK, Verdict.TIGHTEN, Verdict.ACCEPT], seen=[])
    diary = Diary(1e-3, 1e-3, events=[])
    method = bilevel.Method(diary, line, solver=bilevel.Nesterov())
    state, info = next(bilevel.iterate(problem, ONES, method))
    failed = diary.events.count("tighten")
    assert diary.events[failed:] == ["rejected", "harder", "accepted"]
    eps = 1e-3 * 0.5**failed
    assert [base.asked.eps for base, *_ in line.seen] == [eps, eps, eps / 2]
    assert line.seen[0][0] == line.seen[1][0]
    assert line.seen[2][0].high - line.seen[2][0].low < line.seen[1][0].high - line.seen[1][0].low
    assert info.eps <= eps / 2 and info.delta <= eps / 2
    assert state.memory.asked.eps == pytest.approx(eps / 2 * 1.05)
    z = (ONES - state.theta) / 1e-3
    error = np.linalg.norm(np.asarray(z) - problem.closed_form(ONES).gradient)
    assert error <= info.gradient_error * (1 + 1e-9) + 1e-10
    assert info.step == 1e-3 and state.steps == 1


def test_a_wild_first_step_is_capped(monkeypatch):
    """step = 1e6: no trial spends more than max(250, twice the last base solve), and the run recovers."""
    trials, solve = [], Meter.solve

    def watched(self, theta, x0, eps, cap=math.inf, q=None):
        before = self.counts.cost
        point = solve(self, theta, x0, eps, cap, q)
        if cap < math.inf:
            trials.append((self.counts.cost - before, cap, bool(point.lower.result == RESULTS.max_cost_reached)))
        return point

    monkeypatch.setattr(Meter, "solve", watched)
    problem = denoising()
    method = bilevel.maid(1e-2, 1e-2, 1e6)
    thetas, infos = run(problem, jnp.array([-4.0, -2.0]), method, max_steps=5)
    assert all(spent <= cap and cap >= 250 for spent, cap, _ in trials)
    assert any(capped for *_, capped in trials)
    assert len(thetas) == 6 and infos[0].step < 1e6
    assert infos[-1].value < infos[0].value


def test_a_constant_step_composes_into_a_method():
    """theta+ = theta - alpha z with z within its bound of the true gradient, step after step."""
    problem = quadratic()
    method = bilevel.Method(bilevel.Fixed(1e-10, 1e-10), bilevel.Constant(0.01))
    thetas, infos = run(problem, ONES, method, max_steps=5)
    for before, after, info in zip(thetas, thetas[1:], infos, strict=False):
        expected = np.asarray(before) - 0.01 * problem.closed_form(before).gradient
        np.testing.assert_allclose(after, expected, rtol=0, atol=0.01 * info.gradient_error + 1e-14)
        assert info.step == 0.01


# --- how it ends


@pytest.mark.parametrize(
    "method", [bilevel.maid(), bilevel.hoag(), bilevel.fixed_accuracy(1e-9), bilevel.quasi_newton()]
)
@pytest.mark.parametrize("tol", [1e-1, 1e-3])
def test_a_tolerance_met_holds_for_the_true_gradient(method, tol):
    """Result converged means ||grad f|| <= tol, by the closed form."""
    problem = quadratic()
    solution = bilevel.solve(problem, ONES, method, tol=tol, max_steps=300)
    assert solution.converged and solution.certified
    assert solution.gradient_norm + solution.gradient_error <= tol
    assert np.linalg.norm(problem.closed_form(solution.theta).gradient) <= tol


def test_a_tolerance_met_holds_on_total_variation():
    """The same where the certificate has all its terms; by default tol is 1e-3 of the first bound."""
    problem = denoising()
    solution = bilevel.solve(problem, jnp.array([-3.0, -3.0]), tol=3e-3, max_steps=200)
    assert solution.converged and solution.certified
    assert np.linalg.norm(tv_truth(problem, np.asarray(solution.theta))[1]) <= 3e-3


@pytest.mark.parametrize("method", [bilevel.quasi_newton(), bilevel.maid(), bilevel.fixed_accuracy(1e-9)])
def test_the_default_tolerance_is_relative_to_a_certified_norm(method):
    """1e-3 (||z_0|| - omega_0) with omega_0 <= ||z_0||/2: at least 1/3 of, and at most, 1e-3 ||grad f(theta_0)||."""
    problem = quadratic()
    solution = bilevel.solve(problem, ONES, method, max_steps=300)
    first, last = (np.linalg.norm(quadratic_truth(problem, t)[1]) for t in (ONES, solution.theta))
    tol = solution.tol
    assert solution.converged and 1e-3 * first / 3 <= tol <= 1e-3 * first
    assert last <= tol and solution.gradient_norm + solution.gradient_error <= tol
    assert "a thousandth of its norm at theta0" in solution.message


@pytest.mark.parametrize(
    "method", [bilevel.maid(), bilevel.hoag(), bilevel.fixed_accuracy(1e-4), bilevel.quasi_newton()]
)
def test_max_cost_is_never_exceeded_and_the_last_accepted_point_returned(method):
    """For every budget, small to large: spent <= budget, and theta is where the free run was after as many steps."""
    problem = quadratic()
    free, _ = run(problem, 3 * ONES, method, max_steps=8, tol=0.0)
    whole = bilevel.solve(problem, 3 * ONES, method, max_steps=7, tol=0.0).cost
    seen = set()
    for budget in [*range(3, 40), *range(40, 200, 13), 333.5]:
        solution = bilevel.solve(problem, 3 * ONES, method, max_cost=budget, max_steps=7, tol=0.0)
        assert solution.cost <= budget
        steps = len(solution.history["cost"]) - 1
        seen.add(steps)
        np.testing.assert_array_equal(solution.theta, free[steps])
        assert solution.result == (RESULTS.max_cost_reached if budget < whole else RESULTS.max_steps_reached)
        truth = problem.closed_form(solution.theta)
        assert abs(solution.value - truth.value) <= solution.value_error
        assert not math.isnan(solution.gradient_norm) or solution.gradient_error == math.inf
    assert len(seen) > 3


def test_max_cost_is_kept_where_constants_are_estimated_too():
    """The estimates' products are paid from the budget; a budget that pays for nothing is a ValueError."""
    problem = Pairs(jnp.arange(1.0, 4.0), declared=False)
    for budget in range(45, 400, 70):
        solution = bilevel.solve(problem, {"a": jnp.ones(3)}, max_cost=budget, max_steps=5)
        assert solution.cost <= budget and not solution.certified
    with pytest.raises(ValueError, match="max_cost"):
        bilevel.solve(problem, {"a": jnp.ones(3)}, max_cost=3)


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_max_steps(steps):
    """Exactly so many accepted steps, the last point certified, and the result says so."""
    problem = quadratic()
    solution = bilevel.solve(problem, 3 * ONES, max_steps=steps)
    assert solution.result == RESULTS.max_steps_reached and not solution.converged
    assert len(solution.history["value"]) == steps + 1 and solution.steps == steps
    assert math.isfinite(solution.gradient_error)


def test_history_describes_every_accepted_point():
    """Entry 0 is theta0, costs and seconds never fall, every column is as long, the counts add up to the cost."""
    problem = quadratic()
    solution = bilevel.solve(problem, 3 * ONES, max_steps=6)
    history = solution.history
    assert {column.shape for column in history.values()} == {(7,)}
    for name in ("cost", "seconds", "lower_gradients", "hessian_products", "cross_products"):
        assert np.all(np.diff(history[name]) >= 0)
    assert np.all(np.diff(history["cost"]) > 0)
    kinds = ("lower_gradients", "hessian_products", "cross_products")
    np.testing.assert_array_equal(sum(history[name] for name in kinds), history["cost"])
    assert abs(history["value"][0] - problem.closed_form(3 * ONES).value) <= history["value_error"][0]
    assert (history["value"][-1], history["gradient_norm"][-1]) == (solution.value, solution.gradient_norm)
    assert np.all(history["step"][:-1] > 0) and math.isnan(history["step"][-1])
    assert solution.compile_seconds >= 0


def test_too_loose_a_fixed_accuracy_ends_with_no_decrease():
    """eps = 10 certifies nothing near the optimum: the run says so, and nothing it accepted was wrong."""
    problem = quadratic()
    thetas, infos = run(problem, ONES, bilevel.fixed_accuracy(10.0), max_steps=50, tol=1e-8)
    assert infos[-1].result == RESULTS.no_decrease
    check_truth(problem, quadratic_truth, thetas, infos)


def test_asking_for_more_than_float64_has_ends_at_the_floor():
    """tol = 0 ends with a result of its own, after finitely many steps, at a true optimum."""
    solution = bilevel.solve(Scalars(), 0.0, bilevel.maid(step=10.0), tol=0.0, max_steps=1000)
    assert solution.result == RESULTS.accuracy_floor and "stationary to within" in solution.message
    assert solution.theta == pytest.approx(math.log(3), abs=1e-6)


class Follow(bilevel.AbstractProblem):
    """xhat = theta, f = 1/2 ||theta - target||^2."""

    target: jax.Array

    def lower(self, x, theta):
        return 0.5 * jnp.sum((x - theta) ** 2)

    def upper(self, x, theta):
        return 0.5 * jnp.sum((x - self.target) ** 2)

    def guess(self, theta):
        return jnp.zeros_like(self.target)

    def constants(self, theta):
        return bilevel.Constants(mu=1.0, L=1.0, L_upper=1.0, L_hessian=0.0, L_cross=0.0, convex_upper=True)


@pytest.mark.parametrize(
    "method", [bilevel.maid(), bilevel.hoag(), bilevel.fixed_accuracy(1e-3), bilevel.quasi_newton()]
)
@pytest.mark.parametrize("optimum", [[0.0, 0.0], [1.0, 2.0]])
def test_a_start_that_is_optimal_already_ends_at_once(method, optimum):
    """z = 0, or even g = h = 0 with all errors zero: no division by zero, no endless tightening, theta untouched."""
    problem, theta0 = Follow(jnp.array(optimum)), jnp.array(optimum)
    assert bilevel.solve(problem, theta0, method, tol=1e-9).converged
    for tol in (None, 0.0):
        solution = bilevel.solve(problem, theta0, method, tol=tol)
        exact = optimum == [0.0, 0.0]  # g = h = 0, and no error at all; else rounding is all that is left
        assert solution.result == (RESULTS.converged if exact else RESULTS.accuracy_floor)
        np.testing.assert_array_equal(solution.theta, theta0)


# --- boxes


@pytest.mark.parametrize("bounds", [(-0.5, 0.5), (jnp.array([-1.0, 0.0, -9.0]), jnp.array([1.0, 0.0, 9.0]))])
def test_a_box_is_never_left_and_stops_by_the_projected_gradient(bounds):
    """Every iterate lies inside; at the end ||P(theta - grad f) - theta|| <= tol by the closed form."""
    problem = quadratic()
    theta0, tol = jnp.zeros(3), 1e-3
    lo, hi = (np.broadcast_to(np.asarray(side), 3) for side in bounds)
    thetas, infos = run(problem, theta0, bilevel.maid(), bounds=bounds, tol=tol, max_steps=300)
    for theta in thetas:
        assert np.all(lo <= theta) and np.all(theta <= hi)
    assert infos[-1].result == RESULTS.converged
    end = np.asarray(thetas[-1])
    gradient = problem.closed_form(thetas[-1]).gradient
    assert np.linalg.norm(np.clip(end - gradient, lo, hi) - end) <= tol
    assert np.linalg.norm(gradient) > 10 * tol  # the box is active
    values = [problem.closed_form(theta).value for theta in thetas]
    assert np.all(np.diff(values) < 1e-12)


def test_a_box_whose_corner_is_the_start_ends_there():
    """Pinned at a corner with the gradient pushing out, the projected gradient is zero."""
    problem = Follow(jnp.array([5.0, 5.0]))
    solution = bilevel.solve(problem, jnp.zeros(2), bounds=(-1.0, 0.0), tol=1e-6)
    assert solution.converged and solution.gradient_norm == 0
    np.testing.assert_array_equal(solution.theta, jnp.zeros(2))


# --- the interface


class Pairs(bilevel.AbstractProblem):
    """Dicts for theta and x, a lower level that is not quadratic, and no closed form."""

    target: jax.Array
    declared: bool = True

    def lower(self, x, theta):
        r = x["u"] - theta["a"]
        return 0.5 * jnp.sum(r**2) + 0.5 * jnp.sum(jnp.sqrt(1 + r**2)) + 0.5 * (x["v"] - jnp.sum(x["u"])) ** 2

    def upper(self, x, theta):
        return 0.5 * jnp.sum((x["u"] - self.target) ** 2) + 0.005 * jnp.sum(theta["a"] ** 2) + 0.05 * x["v"] ** 2

    def guess(self, theta):
        return {"u": jnp.zeros_like(self.target), "v": jnp.zeros_like(self.target[0])}

    def constants(self, theta):
        if not self.declared:
            return bilevel.Constants()
        return bilevel.Constants(
            mu=0.2, L=6.0, L_upper=1.0, L_upper_theta=0.0, L_hessian=0.5, L_cross=0.5, convex_upper=True
        )


@pytest.mark.parametrize("declared", [True, False])
def test_theta_and_x_may_be_pytrees(declared):
    """Dicts in, dicts of the same structure out; certified exactly if everything was declared."""
    problem = Pairs(jnp.arange(1.0, 4.0), declared=declared)
    theta0 = {"a": jnp.zeros(3)}
    solution = bilevel.solve(problem, theta0, tol=1e-4, max_steps=300, bounds=({"a": jnp.full(3, -9.0)}, 9.0))
    assert solution.converged and solution.certified is declared
    assert jax.tree.structure(solution.theta) == jax.tree.structure(theta0)
    assert set(solution.x) == {"u", "v"}
    # at xhat: u = a, v = sum a, so f has a closed form after all
    a = np.asarray(solution.theta["a"])
    assert np.linalg.norm(a - np.arange(1.0, 4.0) + 0.01 * a + 0.1 * a.sum()) <= 1e-4


class Scalars(bilevel.AbstractProblem):
    """Everything is one number: h = 1/2 e^theta x^2 + 1/2 (x - 1)^2, so xhat = 1/(1 + e^theta)."""

    def lower(self, x, theta):
        return 0.5 * jnp.exp(theta) * x**2 + 0.5 * (x - 1) ** 2

    def upper(self, x, theta):
        return 0.5 * (x - 0.25) ** 2

    def guess(self, theta):
        return jnp.zeros_like(theta)

    def constants(self, theta):
        e = jnp.exp(theta)
        return bilevel.Constants(mu=1 + e, L=1 + e, L_upper=1.0, L_hessian=0.0, L_cross=e, convex_upper=True)


def test_theta_may_be_a_number():
    """A Python float, or an array of shape (); the answer is log 3."""
    for theta0 in (0.0, jnp.array(0.0)):
        solution = bilevel.solve(Scalars(), theta0, tol=1e-5, max_steps=300)
        assert solution.converged and solution.certified
        assert solution.theta.shape == () and solution.theta == pytest.approx(math.log(3), abs=1e-3)


def test_iterate_and_solve_are_one_run_and_the_callback_sees_every_step():
    """Same states, same infos, in the same order; and `iterate(state=)` goes on from any of them."""
    problem, seen = quadratic(), []
    solution = bilevel.solve(problem, 3 * ONES, max_steps=6, callback=lambda state, info: seen.append((state, info)))
    pairs = list(bilevel.iterate(problem, 3 * ONES, max_steps=6))
    assert len(seen) == len(pairs) == len(solution.history["value"])
    for (state, info), (again, same), value in zip(seen, pairs, solution.history["value"], strict=True):
        np.testing.assert_array_equal(state.theta, again.theta)
        np.testing.assert_array_equal(
            [v for k, v in info._asdict().items() if k not in ("theta", "seconds", "certificate", "result", "counts")],
            [v for k, v in same._asdict().items() if k not in ("theta", "seconds", "certificate", "result", "counts")],
        )
        assert info.counts == same.counts and info.value == value and info.result == same.result
    rest = list(bilevel.iterate(problem, 3 * ONES, max_steps=6, state=pairs[2][0]))
    assert len(rest) == len(pairs) - 3
    np.testing.assert_array_equal(rest[-1][0].theta, solution.theta)


def test_nothing_is_printed_where_there_is_no_terminal(capfd):
    """The progress bar is for people: a log file stays clean, with progress=True as with False."""
    for progress in (True, False):
        bilevel.solve(quadratic(), ONES, max_steps=2, progress=progress)
    out, err = capfd.readouterr()
    assert out == err == ""
