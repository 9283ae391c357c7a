"""Test what a problem promises before trusting a certificate that rests on it.

What can be measured is compared with what is declared: a curvature below mu, a change of a derivative larger than the
Lipschitz constant that should bound it, a hypergradient away from (f(theta + t v) - f(theta - t v)) / 2t each
*disprove* something. Silence proves nothing, but most mistakes are caught.
"""

import numpy as np
from jaxtyping import PyTree

from .check_probe import Curvature, Probe, curvatures, flat, norms, unit
from .check_search import Lines, climb, confirmed, mismatches
from .inputs import prepare
from .lower import AbstractLowerSolver
from .pointwise import hypergradient, solve_lower
from .problem import AbstractProblem
from .results import RESULTS
from .solvers import LBFGS

DISTANCES = (1e-2, 1e-1, 1.0, 10.0, 100.0)  # from the solution, in units of 1 + ||x||
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

    At the solved lower level, at points around it up to a hundred times 1 + ||x|| away, and along lines through it,
    refined where h is least smooth or curves least: finite values (within 1 + ||x||), derivatives that agree with
    finite differences, curvature against `mu` and `L`, kinks, every other constant and `bounds` against the change
    that it bounds, `convex_upper`, and the hypergradient against central differences of f.

    An empty list means that nothing was contradicted. Up to 64 unknowns Hessians are measured whole, in seconds, most
    of them compilation; beyond, by Lanczos, at the cost of about a thousand gradients and products. Raises as `solve`
    does for inputs.
    """
    problem, theta, x0 = prepare(problem, theta, x0)
    probe = Probe(problem, theta, x0, seed)
    found = Findings(type(problem).__name__)
    start = probe.y
    seen = probe(start)
    for name, value, gradients in (("lower", seen.h, [seen.rho]), ("upper", seen.g, [seen.g_y, seen.g_theta])):
        for what, arrays in ((name, [value]), (f"the gradient of {name}", gradients)):
            if not all(np.isfinite(array).all() for array in arrays):
                found.add(what, np.inf, f"{what} is not finite at the starting point.")
    if found.messages:
        return found.report()

    tight = probe.eps**0.5 * probe.scale
    lower = solve_lower(problem, theta, eps=tight, x0=x0, solver=solver)
    solved = lower.result == RESULTS.converged or lower.result == RESULTS.accuracy_floor
    if not solved:
        found.add("solve", np.inf, f"the lower level could not be solved to {tight:.1e}: {RESULTS[lower.result]}")
    probe.move_to(lower.x)
    if not np.isfinite(probe.y).all():
        return found.report()

    (center,) = curvatures(probe, probe.y[None])
    if not center.finite:
        found.add("finite", np.inf, f"lower or upper, or a derivative of theirs, is not finite {_at(probe, probe.y)}.")
        return found.report()
    _judge_accuracy(probe, found, lower, tight, center)
    if solved:
        _judge_hypergradient(probe, found, lower, tight, solver)
    rng = np.random.default_rng(seed)
    lines = _lines(probe, center, start, rng)
    _judge_lines(probe, found, lines, center)
    around = [_away(probe, rng.standard_normal(probe.n) / probe.root, far) for far in DISTANCES]
    for curvature in [center, *_survey(probe, center, start, np.asarray(around), lines, rng)]:
        _judge_curvature(probe, found, curvature, center)
    _judge_changes(probe, found, np.stack([probe.y, start, *around[1:4]] if probe.small else [probe.y, around[2]]))
    _judge_derivatives(probe, found, np.stack([probe.y, *around[:3]]))
    return found.report()


class Findings:
    """By what is wrong, the message, and how badly: the worst is told."""

    def __init__(self, name: str):
        self.name, self.messages = name, {}

    def add(self, what: str, excess: float, message: str) -> None:
        if what not in self.messages or excess > self.messages[what][0]:
            self.messages[what] = excess, message

    def report(self) -> list[str]:
        messages = [message for _, message in self.messages.values()]
        for message in messages or ["nothing contradicts what is declared."]:
            print(f"{self.name}: {message}")
        return messages


def _at(probe, y):
    far = probe.distance(y)
    return f"at a distance of {far:.1g} from the solution" if far > 1e-6 * probe.scale else "at the solution"


def _away(probe, direction, far):
    """The point at a distance of far (1 + ||x||) in a direction."""
    return probe.y + far * probe.scale / norms(probe.root * direction) * direction


def _lines(probe, center, start, rng):
    """Through the solution: random, along axes, along the least curvature, and through the starting point."""
    axes = np.arange(probe.n) if probe.small else rng.choice(probe.n, 2, replace=False)
    directions = np.zeros((len(axes), probe.n))
    directions[np.arange(len(axes)), axes] = 1
    many = rng.standard_normal((8 if probe.small else 2, probe.n)) / probe.root
    directions = unit(np.concatenate([many, directions, center.flattest[None], (probe.y - start)[None]]))
    directions = directions[norms(directions) > 0]
    options = dict(ratio=1.5, width=12) if probe.small else dict(ratio=6.0, width=1)
    return Lines(probe, directions, reach=DISTANCES[-1], jumps=probe.constants.L_hessian is not None, **options)


def _survey(probe, center, start, around, lines, rng):
    """Curvatures where they may be least: far away, along the least curvature, where lines are flattest, and around
    the flattest point so far."""
    flat, between = lines.flattest(), probe.y - start
    if not probe.small:
        return curvatures(probe, np.concatenate([start[None], around, flat[:2]]))
    points = [start, start + between / 2, start + 2 * between, *around, *flat]
    for far in DISTANCES:
        points += [_away(probe, d, far) for d in (center.flattest, -center.flattest)]
        points += [_away(probe, rng.standard_normal(probe.n) / probe.root, far) for _ in range(3)]
    seen = curvatures(probe, np.asarray(points))
    for step in (1, 0.3, 0.1, 0.03):
        flattest = min((c for c in [center, *seen] if c.finite), key=lambda c: c.smallest).y
        size = step * (probe.distance(flattest) + 0.1 * probe.scale)
        steps = unit(rng.standard_normal((16, probe.n)) / probe.root)
        seen += curvatures(probe, flattest + size * steps / norms(probe.root * steps)[:, None])
    return seen


def _judge_accuracy(probe, found, lower, tight, center):
    """Whether the solve got as far as mu and the curvature at the solution allow."""
    known = probe.constants
    mu = center.smallest if known.mu is None else known.mu
    terms = probe.scale * center.largest + (0 if known.rounding is None else known.rounding)
    if mu > 0 and lower.error > 10 * (tight + probe.eps * terms / mu):
        found.add("solve", np.inf, (
            f"the lower level could not be solved to {tight:.1e}, only to {float(lower.error):.1e}, although its "
            "curvature there allows more: does it have a kink, or curve far less elsewhere?"
        ))  # fmt: skip


def _judge_lines(probe, found, lines, center):
    known = probe.constants
    nodes = lines.cells.reshape(-1, 4)
    near = np.abs(nodes[:, 1]) * lines.per_t[nodes[:, 0].astype(int)] <= SLACK * probe.scale
    if (bad := near & ~np.isfinite(nodes).all(axis=1)).any():
        where = _at(probe, lines.at(nodes[bad][:1])[0])
        found.add("finite", 1, f"lower or upper, or a derivative of theirs, is not finite {where}.")
    if (kink := lines.kink(center.largest)) is not None:
        found.add("kink", np.inf, (
            f"the gradient of lower jumps by {kink.amount:.3g} {_at(probe, kink.y)}: it has a kink there, where no "
            "certificate holds. Smooth it, as sqrt(t^2 + nu^2) does |t|."
        ))  # fmt: skip
    if known.L_hessian is not None and (jump := lines.jump(center.largest, known.L_hessian)) is not None:
        found.add(*_too_small("L_hessian", known.L_hessian, jump.amount / jump.length, _at(probe, jump.y), "constants"))


def _too_small(name, declared, measured, at, where):
    return name, measured - declared, (
        f"{name} is declared as {declared:.4g} by {where}, but {measured:.4g} was measured {at}: no certificate holds. "
        "Declare a larger value, or None to have it estimated."
    )  # fmt: skip


def _judge_curvature(probe, found, c: Curvature, center: Curvature):
    """Against mu, L, L_upper, L_upper_theta and convex_upper; beyond 1 + ||x||, overflow contradicts nothing.

    What is added up may be as large as at the solution and cancel, as p - p^2 does in a softmax far away.
    """
    known, at = probe.constants, _at(probe, c.y)
    noise, g_noise = c.noise + center.noise, c.g_noise + center.g_noise
    near = probe.distance(c.y) <= SLACK * probe.scale
    if not c.finite:
        if near:
            found.add("finite", 1, f"lower or upper, or a derivative of theirs, is not finite {at}.")
        return
    if known.mu is not None and c.smallest < known.mu / SLACK - noise:
        found.add("mu", known.mu - c.smallest, (
            f"lower is declared {known.mu:.4g}-strongly convex, but curves only {c.smallest:.4g} in some direction "
            f"{at}: no certificate holds. Correct Constants(mu=...) or add a strongly convex term."
        ))  # fmt: skip
    elif known.mu is None and c.smallest < (0 if near else -noise):
        found.add("mu", -c.smallest, (
            f"lower is not strongly convex {at}: it curves {c.smallest:.4g} in some direction."
        ))  # fmt: skip
    for name, measured, slack in (
        ("L", c.largest, noise), ("L_upper", max(c.g_high, -c.g_low), g_noise), ("L_upper_theta", c.K, 8 * probe.eps * c.K),
    ):  # fmt: skip
        declared = getattr(known, name)
        if declared is not None and not measured <= SLACK * declared + slack:
            found.add(*_too_small(name, declared, measured, at, "constants"))
    if known.convex_upper and c.g_low < -g_noise:
        found.add(
            "convex", -c.g_low, f"upper is declared convex in x, but curves {c.g_low:.4g} in some direction {at}."
        )


def _judge_changes(probe, found, points):
    """What third derivatives bound, and ||J||, against the largest changes that climbing finds."""
    options = dict(starts=3, steps=15) if probe.small else dict(starts=1, steps=8)
    own = type(probe.problem).bounds is not AbstractProblem.bounds  # else they repeat the constants
    worst = []
    for change in climb(probe, points, (1e-1, 1e-3), **options):
        where = "constants" if change.name in ("L_hessian", "L_cross") else "bounds"
        if where == "bounds" and not own:
            continue
        y = change.ends[1]
        known = probe.constants if where == "constants" else probe.declared(y, change.v, change.length)[1]
        if (declared := getattr(known, change.name)) is None:
            continue
        noise = 4 * probe.eps * float(norms(y.astype(float)))
        allowed = SLACK * declared * (change.length + noise) + 16 * probe.eps * change.size
        if np.isfinite(change.amount) and not change.amount <= allowed:
            worst.append((change.amount / change.length - declared, change, declared, allowed, where))
    for excess, change, declared, allowed, where in sorted(worst, key=lambda one: -one[0]):
        if change.name not in found.messages and (
            change.name == "J" or confirmed(probe, change.ends, change.v, change.field, allowed)
        ):
            found.add(*_too_small(change.name, declared, declared + excess, _at(probe, change.ends[1]), where))


def _judge_derivatives(probe, found, points):
    for miss in mismatches(probe, points):
        if not miss.fine <= 1e-2 * miss.size + miss.noise and miss.fine > 0.5 * miss.coarse:
            found.add(miss.name, miss.fine, (
                f"the {miss.name} of lower does not match finite differences {_at(probe, miss.y)} (off by "
                f"{miss.fine:.3g} of {miss.size:.3g}): is lower smooth there, is a custom derivative rule right?"
            ))  # fmt: skip


def _judge_hypergradient(probe, found, lower, tight, solver):
    """Central differences of f along a random direction against <z, v>, z = grad_theta g - J^T q, H q = grad_x g."""
    options = dict(eps=tight, solver=solver)
    rng = np.random.default_rng(probe.seed)
    error = float(lower.error)
    if probe.small:
        z, near = (_hypergradient(probe, y) for y in (probe.y, probe.y + error * unit(rng.standard_normal(probe.n))))
        z_error = 4 * norms(z - near)
    else:
        out = hypergradient(probe.problem, probe.theta, delta=tight, x0=lower.x, **options)
        if out.result == RESULTS.not_strongly_convex or out.result == RESULTS.non_finite:
            return found.add("adjoint", np.inf, f"the adjoint system could not be solved: {RESULTS[out.result]}")
        z, z_error = flat(out.gradient), float(out.gradient_error)
    v, slopes, noise = unit(rng.standard_normal(probe.d)), [], 0.0
    for t in (1e-3, 1e-4):
        thetas = [probe.theta_at(sign * t * v) for sign in (1, -1)]
        ends = [solve_lower(probe.problem, theta, x0=lower.x, **options) for theta in thetas]
        seen = [probe(flat(end.x) / probe.root, theta=theta) for end, theta in zip(ends, thetas, strict=True)]
        length = float((flat(thetas[0]).astype(float) - flat(thetas[1])) @ v)  # as rounded
        slopes.append(float(seen[0].g[0] - seen[1].g[0]) / length)
        errors = [
            norms(one.g_y[0]) * float(end.error) + probe.eps * (1 + probe.n**0.5) * abs(one.g[0])
            for one, end in zip(seen, ends, strict=True)
        ]
        noise = sum(errors) / length
    # the values' errors over t, and the difference between the two quotients, which grows like t^2
    slope = float(z @ v)
    allowed = noise + 2 * abs(slopes[0] - slopes[1]) + z_error + 1e-3 * abs(slope)
    if abs(slope - slopes[1]) > allowed:
        found.add("hypergradient", np.inf, (
            f"the hypergradient along a random direction is {slope:.6g}, but finite differences of the solved problem "
            f"give {slopes[1]:.6g}: does lower have a custom derivative rule that is wrong, or a kink?"
        ))  # fmt: skip


def _hypergradient(probe, y):
    """z at y, by the whole Hessian."""
    seen = probe(y, np.eye(probe.n))
    q = np.linalg.lstsq(seen.Hv, seen.g_y[0])[0]
    return seen.g_theta[0] - q @ seen.Jtv
