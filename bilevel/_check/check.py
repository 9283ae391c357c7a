"""Test what a problem promises before trusting a certificate that rests on it.

What can be measured is compared with what is declared: a curvature below mu, a change of a derivative larger than the
Lipschitz constant that should bound it, a hypergradient away from (f(theta + t v) - f(theta - t v)) / 2t each
*disprove* something. Silence proves nothing, but most mistakes are caught.
"""

import numpy as np
from jaxtyping import PyTree

from .._arguments import part
from .._at_one_theta import hypergradient, solve_lower
from .._chunked import Chunked
from .._inputs import prepare
from .._lower.descend import LowerSolution
from .._lower.lbfgs import LBFGS
from .._lower.solver import AbstractLowerSolver
from .._nonsmooth import refuse_kinks
from .._problem import AbstractProblem
from .._results import RESULTS
from .curvature import DISTANCES, curvatures, survey
from .lines import Lines
from .probe import Probe, flat, norms, unit
from .search import climb, mismatches
from .verdicts import Findings


@np.errstate(over="ignore", invalid="ignore")  # beyond the range of h
def check_problem(
    problem: AbstractProblem,
    theta: PyTree,
    *,
    x0: PyTree | None = None,
    solver: AbstractLowerSolver = LBFGS(),
    seed: int = 0,
) -> list[str]:
    """Look for contradictions between a problem's code and what it declares, at theta; print and return them.

    At the solved lower level, at points around it up to a hundred times 1 + ||x|| away, and along lines through it,
    refined where h is least smooth or curves least: finite values (within 1 + ||x||), derivatives that agree with
    finite differences, curvature against `mu` and `L`, kinks, every other constant and `bounds` against the change
    that it bounds, `convex_upper`, and the hypergradient against central differences of f.

    An empty list means that nothing was contradicted. Up to 64 unknowns Hessians are measured whole, in seconds, most
    of them compilation; beyond, by Lanczos, at the cost of about a thousand gradients and products. Of a `Chunked`
    problem its first unit is looked at. Raises as `solve` does for inputs.
    """
    part("solver", solver, AbstractLowerSolver, "LBFGS()")
    problem = problem.first if isinstance(problem, Chunked) else problem
    problem, theta, x0 = prepare(problem, theta, x0)
    refuse_kinks(problem, "bilevel.check_problem compares derivatives of h")
    probe = Probe(problem, theta, x0, seed)
    found, start = Findings(probe), probe.y
    if not found.start():
        return found.report()
    tight = probe.eps**0.5 * probe.scale
    lower = solve_lower(problem, theta, eps=tight, x0=x0, solver=solver)
    solved = found.solved(lower, tight)
    probe.move_to(lower.x)
    if not np.isfinite(probe.y).all():
        return found.report()
    (center,) = curvatures(probe, probe.y[None])
    found.curvature(center, center)
    if not center.finite:
        return found.report()
    found.accuracy(lower, tight, center)
    if solved and (wrong := _hypergradient_mismatch(probe, lower, tight, solver)):
        found.add("hypergradient", 1.0, wrong)

    rng = np.random.default_rng(seed)
    around = [probe.away(way, far) for way, far in zip(probe.directions(rng, len(DISTANCES)), DISTANCES, strict=True)]
    few = [probe.y, start, *around[1:4]] if probe.effort > 6 else [probe.y, around[2]]
    changes = climb(probe, np.stack(few))
    lines = Lines(probe, _through(probe, center.flattest, start, changes), DISTANCES[-1])
    found.lines(lines, center)
    around = np.asarray(around)
    for curvature in survey(probe, center, start, around if probe.dense else around[1:4], lines.extremes()):
        found.curvature(curvature, center)
    found.changes(changes)
    found.derivatives(mismatches(probe, np.stack([probe.y, *around[:3]])))
    return found.report()


def _through(probe, flattest, start, changes):
    """Directions of lines through the solution: random, axes, the least curvature's, the starting point's, and those
    along which H was seen to change most."""
    rng = np.random.default_rng(probe.seed)
    axes = rng.choice(probe.n, min(probe.n, probe.effort), replace=False)
    along = np.zeros((len(axes), probe.n))
    along[np.arange(len(axes)), axes] = 1
    steep = [change for change in changes if change.name == "L_hessian" and np.isfinite(change.amount)]
    steep = sorted(steep, key=lambda change: -change.amount / change.length)[: 1 + probe.effort // 3]
    many = probe.directions(rng, max(2, 2 * probe.effort // 3))
    ways = [*many, *along, flattest, probe.y - start, *(change.v for change in steep)]
    directions = unit(np.stack(ways))
    return directions[norms(directions) > 0]


def _hypergradient_mismatch(
    probe: Probe, lower: LowerSolution, tight: float, solver: AbstractLowerSolver
) -> str | None:
    """What is wrong, if anything, between <z, v> and (f(theta + t v) - f(theta - t v)) / 2t, v random, each with the
    error that it may have;  z = grad_theta g - J^T q,  H q = grad_x g."""
    rng = np.random.default_rng(probe.seed)
    options = dict(eps=tight, solver=solver, x0=lower.x)
    if probe.dense:
        z = _by_elimination(probe, probe.y)
        z_error = 4 * norms(z - _by_elimination(probe, probe.y + float(lower.error) * probe.directions(rng, 1)[0]))
    else:
        out = hypergradient(probe.problem, probe.theta, delta=tight, **options)
        bad = (RESULTS.not_strongly_convex, RESULTS.not_convex, RESULTS.non_finite)
        if any(out.result == result for result in bad):
            return f"the adjoint system could not be solved: {RESULTS[out.result]}"
        z, z_error = flat(out.gradient), float(out.gradient_error)
    v, slopes = unit(rng.standard_normal(probe.d)), []
    for t in (1e-3, 1e-4):
        values, noise, thetas = [], 0.0, [probe.theta_at(sign * t * v) for sign in (1, -1)]
        for theta in thetas:
            end = solve_lower(probe.problem, theta, **options)
            seen = probe(flat(end.x) / probe.root, theta=theta, fields=("g", "g_y"))
            values.append(float(seen.g[0]))
            noise += norms(seen.g_y[0]) * float(end.error) + probe.eps * (1 + probe.n**0.5) * abs(values[-1])
        length = float((flat(thetas[0]).astype(float) - flat(thetas[1])) @ v)  # as rounded
        slopes.append((values[0] - values[1]) / length)
    # the values' errors over t, and the difference between the two quotients, which grows like t^2
    slope = float(z @ v)
    allowed = noise / length + 2 * abs(slopes[0] - slopes[1]) + z_error + 1e-3 * abs(slope)
    if abs(slope - slopes[1]) > allowed:
        return (
            f"the hypergradient along a random direction is {slope:.6g}, but finite differences of the solved problem "
            f"give {slopes[1]:.6g}: does lower have a custom derivative rule that is wrong, or a kink?"
        )
    return None


def _by_elimination(probe, y):
    """z at y, by the whole Hessian."""
    seen = probe(y, np.eye(probe.n))
    q = np.linalg.lstsq(seen.Hv, seen.g_y[0])[0]
    return seen.g_theta[0] - q @ seen.Jtv
