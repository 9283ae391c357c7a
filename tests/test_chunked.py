"""Many units, one after the other: what the whole problem gives, certified; the same bits whatever a chunk holds."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel
from bilevel import RESULTS, Chunked
from bilevel._certificate import units
from bilevel._certificate.means import Means, Sum, total
from bilevel._certificate.units import POINT
from bilevel._outer import chunks
from bilevel.problems import ExactTotalVariation, LinearRegression, TotalVariation

N, SIDE = 6, 8
THETA = np.array([-3.0, -3.0])
RNG = np.random.default_rng(0)
CLEAN = RNG.uniform(0.2, 0.8, (N, SIDE, 1)) * np.ones((N, SIDE, SIDE))
NOISY = CLEAN + 0.1 * RNG.standard_normal(CLEAN.shape)
COLUMNS = ("value", "value_error", "gradient_norm", "gradient_error", "eps", "delta", "step", "cost")


def whole():
    return TotalVariation(CLEAN, NOISY)


def chunked(chunk=2, **options):
    return Chunked(TotalVariation, CLEAN, NOISY, **dict(size=2, chunk=chunk) | options)


def solve(problem, *args, **options):
    return bilevel.solve(problem, THETA, *args, **dict(max_steps=3) | options)


def assert_same(one, other):
    np.testing.assert_array_equal(one.theta, other.theta)
    np.testing.assert_array_equal(np.concatenate(one.x), np.concatenate(other.x))
    for name in COLUMNS:
        np.testing.assert_array_equal(one.history[name], other.history[name], err_msg=name)


@pytest.fixture(scope="module")
def solution():
    return solve(chunked())


def test_a_hypergradient_is_that_of_the_whole():
    """Value, gradient, x: to what both certify, and at tight accuracies to 1e-12; eps and delta are of all units."""
    for eps in (1e-2, 1e-12):
        one, parts = (bilevel.hypergradient(problem, THETA, eps=eps, delta=eps) for problem in (whole(), chunked()))
        assert parts.certified and parts.error <= max(eps, one.error) * (1 + 1e-6)
        slack = np.abs(one.value - parts.value)
        assert slack <= one.value_error + parts.value_error
        gap = np.linalg.norm(one.gradient - parts.gradient)
        assert gap <= one.gradient_error + parts.gradient_error
        assert np.linalg.norm(np.concatenate(parts.x) - one.x) <= one.error + parts.error
        # the mean of omega_i is below the bound for the whole, times what unequal shares may cost
        assert parts.gradient_error <= 3 * one.gradient_error
    np.testing.assert_allclose(parts.value, one.value, rtol=1e-12)
    np.testing.assert_allclose(parts.gradient, one.gradient, rtol=0, atol=1e-12)


def test_no_bit_depends_on_the_chunk(solution):
    """theta, x, and every number of the history, for chunks of one unit, of all, and of more than there are."""
    for chunk in (1, 3, 9):
        assert_same(solve(chunked(chunk)), solution)


def test_no_bit_depends_on_where_the_data_are(solution, tmp_path):
    """A memory map, and a function of the index."""
    for name, v in (("clean", CLEAN), ("noisy", NOISY)):
        np.save(tmp_path / f"{name}.npy", v)
    clean, noisy = (np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("clean", "noisy"))
    assert_same(solve(Chunked(TotalVariation, clean, noisy, size=2)), solution)
    made = Chunked(lambda k: TotalVariation(CLEAN[list(k)], NOISY[list(k)]), range(N), size=2)
    assert_same(solve(made), solution)


@pytest.mark.full
def test_a_run_is_that_of_the_whole():
    """To the default tolerance: converged, certified, at the same theta and value, for about the same cost."""
    one, parts = (solve(problem, max_steps=100) for problem in (whole(), chunked()))
    assert one.converged and parts.converged and parts.certified
    assert abs(parts.value - one.value) <= 1e-4 * one.value
    np.testing.assert_allclose(parts.theta, one.theta, atol=0.05)
    assert parts.cost <= 2 * one.cost


@pytest.mark.full
def test_what_is_not_kept_is_computed_anew(tmp_path):
    """The same hypergradient; a run ends at the same value with a checkpoint smaller than x."""
    one, other = (bilevel.hypergradient(chunked(keep=keep), THETA, eps=1e-8, delta=1e-8) for keep in (True, False))
    np.testing.assert_allclose(other.gradient, one.gradient, rtol=0, atol=1e-12)
    assert other.x is None
    kept = solve(chunked(), max_steps=60)
    path = tmp_path / "run.npz"
    anew = solve(chunked(keep=False), max_steps=60, checkpoint=path, every=1)
    assert anew.x is None and anew.converged and abs(anew.value - kept.value) <= 1e-3 * kept.value
    with np.load(path) as file:
        state = [file[name] for name in file.files if name.startswith("state/")]
    assert not any(v.shape[-2:] == (SIDE, SIDE) for v in state)


@pytest.mark.parametrize("keep", [True, pytest.param(False, marks=pytest.mark.full)])
def test_a_resumed_run_is_the_long_one(tmp_path, keep):
    """Bit for bit, under another chunk, too: units are what the run is made of."""
    long, path = solve(chunked(keep=keep), keep_state=True), tmp_path / "run.npz"
    solve(chunked(keep=keep), max_steps=1, checkpoint=path)
    resumed = solve(chunked(3, keep=keep), checkpoint=path, resume=True, keep_state=True)
    np.testing.assert_array_equal(resumed.theta, long.theta)
    jax.tree.map(np.testing.assert_array_equal, resumed.state.point.lower.curvature, long.state.point.lower.curvature)
    for name in COLUMNS:
        np.testing.assert_array_equal(resumed.history[name], long.history[name], err_msg=name)
    with pytest.raises(ValueError, match="another run, its data"):
        solve(Chunked(TotalVariation, CLEAN, CLEAN, size=2, keep=keep), checkpoint=path, resume=True)


@pytest.mark.full
def test_folds_of_a_linear_model():
    """Ridge regression, one unit a fold of its own number of rows: the mean of the folds, with bounds from H itself."""
    rng = np.random.default_rng(1)
    A = rng.standard_normal((21, 3))
    y = A @ np.array([1.0, -1.0, 0.5]) + 0.3 * rng.standard_normal(21)
    out = [np.arange(21) % 3 == k for k in range(3)]
    out[2][:1] = True  # a fold with a row more left out

    def fold(masks):
        (held,) = masks
        return LinearRegression(A[~held], y[~held], A[held], y[held])

    theta = np.zeros((3, 1))
    found = bilevel.hypergradient(Chunked(fold, out), theta, eps=1e-12, delta=1e-12)
    each = [bilevel.hypergradient(fold([held]), theta, eps=1e-12, delta=1e-12) for held in out]
    np.testing.assert_allclose(found.value, np.mean([one.value for one in each]), rtol=1e-12)
    np.testing.assert_allclose(found.gradient, np.mean([one.gradient for one in each], axis=0), rtol=0, atol=1e-12)
    assert bilevel.solve(Chunked(fold, out), theta, max_steps=40).converged


def test_max_cost_is_never_exceeded():
    """Whatever it is: the run ends by its budget, at the last accepted point."""
    for budget in (1, 3, 40):
        found = solve(chunked(), max_cost=budget, tol=0.0, max_steps=100)
        assert found.cost <= budget and found.result == RESULTS.max_cost_reached


def test_a_cost_is_of_all_units():
    """A gradient of every unit is 1, and a part of them rounds up."""
    counts = [[3, 0, 1, 0, 0], [4, 1, 1, 0, 0], [4, 0, 1, 0, 0]]
    told = [units.Told(jnp.ones(8), jnp.asarray(c, jnp.int32), "proven") for c in counts]
    means = Means(told)
    assert [means.cost(name) for name in ("lower_gradients", "hessian_products", "cross_products")] == [4, 1, 1]


def test_a_mean_cost_is_rounded_once():
    """Kinds rounded each by itself would count 151 of an allowance of 150."""

    def told(*counts):
        return units.Told(jnp.zeros(len(POINT)), jnp.asarray([*counts, 0, 0], jnp.int32), "proven")

    names = ("lower_gradients", "hessian_products", "cross_products")
    means = Means([told(100, 50, 0), told(101, 49, 0)])
    assert means.spent(names) == [101, 49, 0]
    assert sum(Means([told(1, 1, 1), told(0, 0, 0), told(0, 0, 1)]).spent(names)) == 2


class Loose(TotalVariation):
    """mu is not declared."""

    def constants(self, theta):
        return dataclasses.replace(super().constants(theta), mu=None)


def test_what_is_not_declared_is_refused():
    problem = Chunked(Loose, CLEAN, NOISY)
    with pytest.raises(ValueError, match="declares no mu, and of Chunked units none is estimated"):
        bilevel.solve(problem, THETA, progress=False)
    with pytest.raises(TypeError, match="compile problem"):
        jax.jit(lambda theta: Chunked(TotalVariation, CLEAN, NOISY).upper(list(NOISY), theta))(THETA)


def test_sums_are_exact_but_for_one_rounding():
    """Numbers that cancel; a gradient, whose sum in floating point alone would be 0."""
    assert total(np.array([1e16, 1.0, -1e16])) == 1.0 and total(np.array([np.inf, 1.0])) == np.inf
    s = Sum(np.zeros(1))
    for v in (1e16, 1.0, -1e16):
        s.add(np.array([v]))
    assert s.mean(1)[0] == 1.0


@pytest.mark.full
def test_what_is_on_a_device_is_a_chunk():
    """XLA's arguments, results and temporaries are one unit's, whatever the number of units; and nothing stays."""
    theta, few = jnp.asarray(THETA), np.asarray(99, np.int32)
    for count in (2, 6):
        problem = Chunked(TotalVariation, CLEAN[:count], NOISY[:count], size=2, chunk=1)
        x = problem.first.guess(theta)
        compiled = jax.jit(units.solve, static_argnums=1).lower(
            problem.first, bilevel.Nesterov(), theta, x, None, jnp.ones(()), few, few
        )  # fmt: skip
        analysis = compiled.compile().memory_analysis()
        assert analysis.argument_size_in_bytes <= 3 * x.nbytes + 2000
        assert analysis.temp_size_in_bytes <= 20 * x.nbytes


@pytest.mark.parametrize(("change", "error", "words"), [
    (dict(make=7), TypeError, "make"), (dict(data=()), TypeError, "has no data"),
    (dict(data=(iter([]),)), TypeError, "length and slices"), (dict(data=(CLEAN, NOISY[:4])), ValueError, "one length"),
    (dict(size=4), ValueError, "does not divide 6.*size=3, or drop the last 2"), (dict(size=0), ValueError, "size"),
    (dict(chunk=-1), ValueError, "chunk must"), (dict(make=lambda a, b: 3), TypeError, "must return a bilevel.Abs"),
    (dict(make=ExactTotalVariation), TypeError, "has a kink"),
])  # fmt: skip
def test_misuse_is_named(change, error, words):
    arguments = dict(make=TotalVariation, data=(CLEAN, NOISY), size=2, chunk=2) | change
    with pytest.raises(error, match=words):
        Chunked(arguments["make"], *arguments["data"], size=arguments["size"], chunk=arguments["chunk"])


def test_a_broken_unit_is_named():
    """NaN in the third unit's data, and another dtype."""
    noisy = NOISY.copy()
    noisy[4, 0, 0] = np.nan
    with pytest.raises(ValueError, match="unit 2: noisy holds NaN"):
        solve(Chunked(TotalVariation, CLEAN, noisy, size=2))

    def mixed(k):
        dtype = np.float32 if k[0] == 2 else np.float64
        return TotalVariation(CLEAN[list(k)].astype(dtype), NOISY[list(k)].astype(dtype))

    with pytest.raises(TypeError, match=r"float32.*float64"):
        solve(Chunked(mixed, range(N), size=2))


def test_what_is_for_one_lower_level_says_so():
    problem = chunked()
    penalty = bilevel.Method(bilevel.Balanced(), bilevel.SlopeTest(), gradient=bilevel.Penalty())
    for call in (
        lambda: bilevel.solve_lower(problem, THETA), lambda: bilevel.objective(problem, eps=1e-3),
        lambda: solve(problem, penalty), lambda: solve(problem, bilevel.self_tuning()),
        lambda: bilevel.estimate_error(problem, THETA, bilevel.hypergradient(problem, THETA)),
    ):  # fmt: skip
        with pytest.raises(TypeError, match=r"Chunked, many of them: pass one, problem.unit\(i\)"):
            call()
    with pytest.raises(ValueError, match="leave x0 out"):
        solve(problem, x0=CLEAN)
    with pytest.raises(TypeError, match="smooth"):
        solve(problem, bilevel.value_descent())


@pytest.mark.full
def test_methods_with_adjoint_gradients_take_it():
    """MAID and HOAG, and a box."""
    for method in (bilevel.maid(), bilevel.hoag()):
        found = solve(chunked(), method, max_steps=3, bounds=(-4.0, -1.0))
        assert found.steps == 3 and found.history["value"][-1] < found.history["value"][0]


def test_what_units_leave_is_for_those_that_need_more():
    """Five units that are solved already and one that is not: an allowance that is a mean does not cut that one off,
    and all together stay within it; half as much does."""
    noisy = np.where(np.arange(N)[:, None, None] == 4, NOISY, 0.5)
    problem = Chunked(TotalVariation, CLEAN, noisy)
    theta, solver = jnp.asarray(THETA), bilevel.Nesterov()
    free = chunks.meter(problem, solver, np.inf)
    assert free.solve(theta, (), 1e-6).lower.result == RESULTS.converged
    enough = free.counts.cost + 2  # a second start
    for cap, result in ((enough, RESULTS.converged), (enough // 2, RESULTS.max_cost_reached)):
        meter = chunks.meter(problem, solver, np.inf)
        point = meter.solve(theta, (), 1e-6, cap)
        assert point.lower.result == result and meter.counts.cost <= cap


def test_x_is_never_further_off_than_its_eps():
    """A solve from x that comes back with a larger eps leaves x, and its eps, as they were: for a point that was told
    of them before."""
    problem, theta = chunked(), jnp.asarray(THETA)
    meter = chunks.meter(problem, bilevel.Nesterov(), np.inf)
    kept = meter.solve(theta, (), 1e-3).lower.curvature
    x, eps = kept.x.copy(), kept.eps.copy()
    solve, differentiate = meter.programs

    def worse(*arguments):
        x, told = solve(*arguments)
        return x + 1, told.at(1.0)

    meter.programs = worse, differentiate
    again = meter.solve(theta, (), 1e-6).lower.curvature
    for one in (kept, again):
        np.testing.assert_array_equal(one.x, x)
        np.testing.assert_array_equal(one.eps, eps)
