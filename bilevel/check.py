"""Test what a problem promises before trusting a certificate that rests on it.

What can be measured is compared with what is declared: a Ritz value below mu, a derivative larger than the Lipschitz
constant that should bound it, a hypergradient away from (f(theta + t v) - f(theta - t v)) / 2t each *disprove*
something. Silence proves nothing, but most mistakes are caught.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from .inputs import prepare
from .krylov import lanczos
from .lower import AbstractLowerSolver
from .pointwise import hypergradient, solve_lower
from .problem import AbstractProblem, Vector, cross_product, cross_transpose_product, hessian_product, lower_gradient
from .results import RESULTS
from .solvers import LBFGS

DISTANCES = (0.0, 1e-2, 1e-1, 1.0)  # from the solution, in units of 1 + ||x||
STEPS = 20  # of Lanczos, of power iterations
SLACK = 1 + 1e-6


def check_problem(
    problem: AbstractProblem,
    theta: PyTree,
    *,
    x0: PyTree | None = None,
    solver: AbstractLowerSolver = LBFGS(),
    seed: int = 0,
) -> list[str]:
    """Look for contradictions between a problem's code and what it declares, at theta; print and return them.

    Checks at the solved lower level and at random points around it: finite values, derivatives that agree with finite
    differences, curvature against `mu` and `L`, every other constant and `bounds` against the derivative it bounds,
    `convex_upper`, and the hypergradient against central differences of f. An empty list means that nothing was
    contradicted. Costs about a thousand gradients and products. Raises as `solve` does for inputs.
    """
    problem, theta, x0 = prepare(problem, theta, x0)
    found: list[str] = []
    for name, level in (("lower", problem.lower), ("upper", problem.upper)):
        value, gradient = jax.value_and_grad(level, (0, 1))(x0, theta)
        for what, tree in ((name, value), (f"the gradient of {name}", gradient)):
            if not _finite(tree):
                found.append(f"{what} is not finite at the starting point.")
    if found:
        return _report(problem, found)

    root = float(jnp.sqrt(jnp.finfo(jax.tree.leaves(x0)[0].dtype).eps))
    tight = root * (1 + float(optax.tree.norm(x0)))
    lower = solve_lower(problem, theta, eps=tight, x0=x0, solver=solver)
    if lower.result != RESULTS.converged and lower.result != RESULTS.accuracy_floor:
        found.append(f"the lower level could not be solved to {tight:.1e}: {RESULTS[lower.result]}")
    scale = float(optax.tree.norm(lower.x)) + 1
    if not _finite(lower.x):
        return _report(problem, found)

    worst: dict[str, tuple[float, str]] = {}  # by what is wrong: how much, and the message; the worst point is told
    for key, distance in zip(jax.random.split(jax.random.key(seed), len(DISTANCES)), DISTANCES, strict=True):
        seen = _measure(problem, theta, lower.x, jnp.asarray(distance * scale, lower.error.dtype), key)
        at = f"at a distance of {distance * scale:.1g} from the solution" if distance else "at the solution"
        _, _, (_, smallest, largest), _ = seen
        if not distance and lower.error > 10 * (tight + root**2 * scale * largest / jnp.maximum(smallest, 0)):
            found.append(
                f"the lower level could not be solved to {tight:.1e}, only to {float(lower.error):.1e}, although its "
                "curvature there allows more: does it have a kink, or curve far less elsewhere?"
            )
        for name, (excess, message) in _judge(seen, at, root).items():
            if name not in worst or excess > worst[name][0]:
                worst[name] = (excess, message)
    if not found:  # else there is no f to difference
        found += _check_hypergradient(problem, theta, lower.x, tight, solver, jax.random.key(seed))
    found += [message for _, message in worst.values()]
    return _report(problem, found)


class _InMetric(AbstractProblem):
    """The problem in y = W^{1/2} x, `root` being W^{-1/2}: Euclidean norms there are the metric's norms here."""

    problem: AbstractProblem
    root: Vector

    def back(self, y):
        return jax.tree.map(jnp.multiply, self.root, y)

    def lower(self, x, theta):
        return self.problem.lower(self.back(x), theta)

    def upper(self, x, theta):
        return self.problem.upper(self.back(x), theta)

    def constants(self, theta):
        return self.problem.constants(theta)

    def bounds(self, x, theta, q, radius):
        return self.problem.bounds(self.back(x), theta, self.back(q), radius)


@eqx.filter_jit
def _measure(problem, theta, x, distance, key):
    """Everything at x displaced by `distance` in a random direction: (declared, measured) by name, and differences."""
    keys = jax.random.split(key, 4)

    def unit(tree):
        norm = optax.tree.norm(tree)
        return optax.tree.scale(1 / jnp.where(norm > 0, norm, 1), tree)

    d, v, q = (unit(optax.tree.random_like(k, x, jax.random.normal)) for k in keys[:3])
    w = unit(optax.tree.random_like(keys[3], theta, jax.random.normal))
    x = optax.tree.add_scale(x, distance, d)
    smallest, largest, _ = lanczos(lambda v: hessian_product(problem, x, theta, v), x, 2 * STEPS)
    if (metric := problem.constants(theta).metric) is not None:  # of all that is declared only L stays Euclidean
        problem = _InMetric(problem, jax.tree.map(jax.lax.rsqrt, metric))
        x = jax.tree.map(jnp.divide, x, problem.root)
        smallest, _, _ = lanczos(lambda v: hessian_product(problem, x, theta, v), x, 2 * STEPS)
    constants, bounds = problem.constants(theta), problem.bounds(x, theta, q, jnp.zeros_like(distance))

    def H(x, v):
        return hessian_product(problem, x, theta, v)

    def J(x, w):
        return cross_product(problem, x, theta, w)

    def along(function, v):
        return jax.jvp(function, (x,), (v,))[1]

    def norm(forward, transpose, like):
        return jnp.sqrt(jnp.maximum(lanczos(lambda v: transpose(forward(v)), like, STEPS)[1], 0))

    def power(_, pair):  # the largest |T[v, w]| of the third derivatives, each argument in turn
        cube, (v, w) = pair
        cube = unit(along(lambda x: H(x, cube), cube))
        v = unit(along(lambda x: J(x, w), v))
        return cube, (v, unit(along(lambda x: cross_transpose_product(problem, x, theta, v), v)))

    cube, (left, right) = jax.lax.fori_loop(0, STEPS, power, (v, (v, w)))
    cross = optax.tree.norm(along(lambda x: J(x, right), left))
    g_x, g_theta = (jax.grad(problem.upper, k) for k in (0, 1))
    g_low, g_high, _ = lanczos(lambda v: along(lambda x: g_x(x, theta), v), x, STEPS)
    pairs = {
        "L": (constants.L, largest),
        "L_upper": (constants.L_upper, jnp.maximum(g_high, -g_low)),
        "L_upper_theta": (constants.L_upper_theta, norm(
            lambda w: jax.jvp(lambda theta: g_x(x, theta), (theta,), (w,))[1],
            lambda v: along(lambda x: g_theta(x, theta), v), theta)),
        "L_hessian": (constants.L_hessian, optax.tree.norm(along(lambda x: H(x, cube), cube))),
        "L_cross": (constants.L_cross, cross),
        "J": (bounds.J, norm(lambda w: J(x, w), lambda v: cross_transpose_product(problem, x, theta, v), theta)),
        "M_H": (bounds.M_H, norm(*2 * (lambda v: along(lambda x: H(x, q), v),), x)),
        "M_J": (bounds.M_J, norm(
            lambda w: along(lambda x: J(x, w), q),
            lambda v: along(lambda x: cross_transpose_product(problem, x, theta, q), v), theta)),
        "L_J": (bounds.L_J, cross),
    }  # fmt: skip

    # central differences with two steps: what they miss of a smooth function shrinks with the step
    slopes, curvatures, Hv = [], [], H(x, v)
    eps = jnp.finfo(distance.dtype).eps
    size = eps ** (1 / 3) * (1 + optax.tree.norm(x))
    h, rho = problem.lower(x, theta), lower_gradient(problem, x, theta)
    for t in (size, size / 10):
        ahead, behind = optax.tree.add_scale(x, t, v), optax.tree.add_scale(x, -t, v)
        slope = (problem.lower(ahead, theta) - problem.lower(behind, theta)) / (2 * t)
        slopes.append((jnp.abs(slope - optax.tree.vdot(rho, v)), 8 * eps * jnp.abs(h) / t))
        change = optax.tree.sub(lower_gradient(problem, ahead, theta), lower_gradient(problem, behind, theta))
        miss = optax.tree.norm(optax.tree.add_scale(optax.tree.scale(1 / (2 * t), change), -1.0, Hv))
        curvatures.append((miss, 8 * eps * (largest * optax.tree.norm(x) + optax.tree.norm(rho)) / t))
    slope_size, curvature_size = jnp.abs(optax.tree.vdot(rho, v)) + size * optax.tree.norm(Hv), optax.tree.norm(Hv)
    differences = {"gradient": (slopes, slope_size), "second derivative": (curvatures, curvature_size)}
    return pairs, differences, (constants.mu, smallest, largest), (constants.convex_upper, g_low, g_high)


def _judge(seen, at, root):
    """What is contradicted at one point: name -> (how badly, the message)."""
    pairs, differences, (mu, smallest, largest), (convex_upper, g_low, g_high) = jax.tree.map(float, seen)
    wrong = {}
    if not _finite(jnp.asarray([smallest, largest, g_low, g_high])):
        return {"finite": (1.0, f"lower or upper, or a derivative of theirs, is not finite {at}.")}
    if mu is not None and smallest < mu / SLACK - root * 1e-4 * largest:
        wrong["mu"] = (mu - smallest, (
            f"lower is declared {mu:.4g}-strongly convex, but curves only {smallest:.4g} in some direction {at}: no "
            "certificate holds. Correct Constants(mu=...) or add a strongly convex term."
        ))  # fmt: skip
    elif smallest <= 0:
        wrong["mu"] = (-smallest, f"lower is not strongly convex {at}: it curves {smallest:.4g} in some direction.")
    for name, (declared, measured) in pairs.items():
        if declared is not None and not measured <= SLACK * declared + 1e-2 * root * (1 + largest):
            where = "bounds" if name in ("J", "M_H", "M_J", "L_J") else "constants"
            wrong[name] = (measured - declared, (
                f"{name} is declared as {declared:.4g} by {where}, but {measured:.4g} was measured {at}: no "
                "certificate holds. Declare a larger value, or None to have it estimated."
            ))  # fmt: skip
    for name, (misses, size) in differences.items():
        (coarse, _), (fine, noise) = misses
        if not fine <= 1e-2 * size + noise and fine > 0.5 * coarse:
            wrong[name] = (fine, (
                f"the {name} of lower does not match finite differences {at} (off by {fine:.3g} of {size:.3g}): is "
                "lower smooth there, is a custom derivative rule right?"
            ))  # fmt: skip
    if convex_upper and g_low < -root * max(g_high, -g_low):
        wrong["convex"] = (-g_low, f"upper is declared convex in x, but curves {g_low:.4g} in some direction {at}.")
    return wrong


def _check_hypergradient(problem, theta, x0, tight, solver, key) -> list[str]:
    """Central differences of f along a random direction against <z, v>, each with the error that its bounds allow."""
    z = hypergradient(problem, theta, eps=tight, delta=tight, x0=x0, solver=solver)
    if z.result == RESULTS.not_strongly_convex or z.result == RESULTS.non_finite:
        return [f"the adjoint system could not be solved: {RESULTS[z.result]}"]
    v = optax.tree.random_like(key, theta, jax.random.normal)
    v = optax.tree.scale(1 / optax.tree.norm(v), v)
    slopes = []
    for t in (1e-3, 1e-4):
        values = []
        for sign in (1, -1):
            x = solve_lower(problem, optax.tree.add_scale(theta, sign * t, v), eps=tight, x0=z.x, solver=solver).x
            values.append(float(problem.upper(x, optax.tree.add_scale(theta, sign * t, v))))
        slopes.append((values[0] - values[1]) / (2 * t))
    # the values' errors over t, and the difference between the two quotients, which grows like t^2
    noise = 2 * float(z.value_error) / 1e-4 + 2 * abs(slopes[0] - slopes[1])
    slope = float(optax.tree.vdot(z.gradient, v))
    if abs(slope - slopes[1]) > noise + float(z.gradient_error) + 1e-3 * abs(slope):
        return [
            f"the hypergradient along a random direction is {slope:.6g}, but finite differences of the solved problem "
            f"give {slopes[1]:.6g}: does lower have a custom derivative rule that is wrong, or a kink?"
        ]
    return []


def _report(problem, found):
    name = type(problem).__name__
    for message in found:
        print(f"{name}: {message}")
    if not found:
        print(f"{name}: nothing contradicts what is declared.")
    return found


def _finite(tree):
    return all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(tree))
