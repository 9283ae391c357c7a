"""Test what a problem promises before trusting a certificate that rests on it.

What can be measured is compared with what is declared: a Ritz value below mu, a difference quotient above a Lipschitz
constant, a hypergradient away from (f(theta + t v) - f(theta - t v)) / 2t each *disprove* something. Silence proves
nothing, but most mistakes are caught.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from .krylov import lanczos
from .lower import AbstractLowerSolver
from .problem import (
    AbstractProblem,
    cross_product,
    cross_transpose_product,
    hessian_product,
    lower_gradient,
)
from .inputs import prepare
from .results import RESULTS
from .solve import hypergradient, solve_lower
from .solvers import LBFGS

POINTS = 4
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
    differences, curvature against `mu` and `L`, `L_upper`, `L_upper_theta`, `L_hessian`, `L_cross` and `bounds`
    against difference quotients, `convex_upper`, and the hypergradient against central differences of f. An empty list
    means that nothing was contradicted. Costs a few hundred gradients and products. Raises as `solve` does for inputs.
    """
    problem, theta, x0 = prepare(problem, theta, x0)
    dtype = jax.tree.leaves(x0)[0].dtype
    root = float(jnp.sqrt(jnp.finfo(dtype).eps))
    found: list[str] = []

    for name, level in (("lower", problem.lower), ("upper", problem.upper)):
        for what, value in ((name, level(x0, theta)), (f"the gradient of {name}", jax.grad(level, (0, 1))(x0, theta))):
            if not all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(value)):
                found.append(f"{what} is not finite at the starting point.")
    if found:
        return _report(problem, found)

    tight = root * (1 + float(optax.tree.norm(x0)))
    lower = solve_lower(problem, theta, eps=tight, x0=x0, solver=solver)
    if not (lower.result == RESULTS.converged) and not (lower.result == RESULTS.accuracy_floor):
        found.append(f"the lower level could not be solved to {tight:.1e}: {RESULTS[lower.result]}")
    constants = problem.constants(theta)
    scale = float(optax.tree.norm(lower.x)) + 1
    keys = jax.random.split(jax.random.key(seed), 3 * POINTS)

    def random_like(key, tree, size):
        direction = optax.tree.random_like(key, tree, jax.random.normal)
        return optax.tree.scale(size / optax.tree.norm(direction), direction)

    def compare(name, measured, declared, at):
        if declared is not None and float(measured) > SLACK * float(declared) + root * scale * 1e-6:
            found.append(
                f"{name} is declared as {float(declared):.4g}, but {float(measured):.4g} was measured {at}: no "
                "certificate holds. Declare a larger value, or None to have it estimated."
            )

    for k in range(POINTS):
        distance = scale * 10.0 ** -(k + 1)
        x = optax.tree.add(lower.x, random_like(keys[3 * k], lower.x, distance))
        at = f"at a distance of {distance:.1g} from the solution"
        v = random_like(keys[3 * k + 1], lower.x, 1.0)
        t = jnp.asarray(root ** (2 / 3) * scale, dtype)
        ahead, behind = optax.tree.add_scale(x, t, v), optax.tree.add_scale(x, -t, v)

        slope = optax.tree.vdot(lower_gradient(problem, x, theta), v)
        measured = (problem.lower(ahead, theta) - problem.lower(behind, theta)) / (2 * t)
        noise = 8 * jnp.finfo(dtype).eps * jnp.abs(problem.lower(x, theta)) / t
        curvature = optax.tree.norm(hessian_product(problem, x, theta, v))
        if not abs(slope - measured) <= 1e-2 * (jnp.abs(slope) + t * curvature) + noise:
            found.append(
                f"the gradient of lower does not match finite differences {at} ({float(slope):.6g} against "
                f"{float(measured):.6g}): is lower smooth there, is a custom derivative rule right?"
            )
        smallest, largest, _ = lanczos(lambda v, x=x: hessian_product(problem, x, theta, v), x, 30)
        if constants.mu is not None and float(smallest) < float(constants.mu) / SLACK - root * 1e-4 * float(largest):
            found.append(
                f"lower is declared {float(constants.mu):.4g}-strongly convex, but curves only {float(smallest):.4g} "
                f"{at}: no certificate holds. Correct Constants(mu=...) or add a strongly convex term."
            )
        elif float(smallest) <= 0:
            found.append(f"lower is not convex {at}: it curves {float(smallest):.4g} in some direction.")
        compare("L", largest, constants.L, at)

        other = optax.tree.add(x, random_like(keys[3 * k + 2], x, distance))
        H, H_other = (hessian_product(problem, y, theta, v) for y in (x, other))
        compare("L_hessian", optax.tree.norm(optax.tree.sub(H, H_other)) / distance, constants.L_hessian, at)
        w = random_like(keys[3 * k + 1], theta, 1.0)
        J, J_other = (cross_product(problem, y, theta, w) for y in (x, other))
        compare("L_cross", optax.tree.norm(optax.tree.sub(J, J_other)) / distance, constants.L_cross, at)
        (g, g_theta), (g_other, g_theta_other) = (jax.grad(problem.upper, (0, 1))(y, theta) for y in (x, other))
        compare("L_upper", optax.tree.norm(optax.tree.sub(g, g_other)) / distance, constants.L_upper, at)
        compare(
            "L_upper_theta", optax.tree.norm(optax.tree.sub(g_theta, g_theta_other)) / distance,
            constants.L_upper_theta, at,
        )  # fmt: skip
        if constants.convex_upper:
            monotone = optax.tree.vdot(optax.tree.sub(g, g_other), optax.tree.sub(x, other))
            if float(monotone) < -root * float(optax.tree.norm(g)) * distance:
                found.append(f"upper is declared convex in x, but its gradient is not monotone {at}.")

        q = optax.tree.scale(scale, v)
        declared = problem.bounds(x, theta, q, jnp.asarray(distance, dtype))
        Hq = optax.tree.scale(scale, optax.tree.sub(H, H_other))
        compare("M_H of bounds", optax.tree.norm(Hq) / distance, declared.M_H, at)
        Jq = optax.tree.sub(*(cross_transpose_product(problem, y, theta, q) for y in (x, other)))
        compare("M_J of bounds", optax.tree.norm(Jq) / distance, declared.M_J, at)
        compare("L_J of bounds", optax.tree.norm(optax.tree.sub(J, J_other)) / distance, declared.L_J, at)
        compare("J of bounds", optax.tree.norm(J), declared.J, at)

    found += _check_hypergradient(problem, theta, lower.x, tight, solver, keys[0])
    return _report(problem, found)


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
