"""What `check_problem` measures: one small program, compiled once and called at many points; the rest is NumPy.

    (y, v, w)  ->  h, g, their gradients, H v, J w, J^T v, G v, K^T v        H = d2h/dy2, J = d2h/dydtheta, G, K of g

y = W^{1/2} x where a metric W is declared, and x else, so that Euclidean norms are the ones that are declared. Third
derivatives are never formed: a Lipschitz constant is contradicted by two points. Arrays come as rows, in float64.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import PyTree

from .problem import AbstractProblem

DENSE = 64  # unknowns up to which Hessians are measured whole
ROWS = 64  # at a time, of small problems
KRYLOV = 30  # products that stand for a Hessian of a large problem


@eqx.filter_jit
def second_order(problem, theta, like, root, y, v, w):
    """The measurements at rows y (rows, n) along v (rows, n) and w (rows, d)."""
    unravel_x, (t, unravel_t) = ravel_pytree(like)[1], ravel_pytree(theta)

    def one(y, v, w):
        def both(y):
            return [
                jax.value_and_grad(lambda y, t, level=level: level(unravel_x(root * y), unravel_t(t)), (0, 1))(y, t)
                for level in (problem.lower, problem.upper)
            ]

        values, slopes = jax.jvp(both, (y,), (v,))
        (h, (rho, _)), (g, (g_y, g_theta)) = values
        (_, (Hv, Jtv)), (_, (Gv, Ktv)) = slopes
        Jw = jax.jvp(lambda t: jax.grad(lambda y: problem.lower(unravel_x(root * y), unravel_t(t)))(y), (t,), (w,))[1]
        return Seen(h, g, rho, g_y, g_theta, Hv, Jtv, Jw, Gv, Ktv)

    if len(y) == 1:  # a large problem, whose code need not know how to be batched
        return jax.tree.map(lambda leaf: leaf[None], one(y[0], v[0], w[0]))
    return jax.vmap(one)(y, v, w)


@eqx.filter_jit
def declarations(problem, theta, like, root, y, q, radius):
    """(constants, bounds at y for q) of the problem."""
    unravel = ravel_pytree(like)[1]
    return problem.constants(theta), problem.bounds(unravel(root * y), theta, unravel(root * q), radius)


class Seen(NamedTuple):
    """Rows of measurements; every field has the rows first."""

    h: Any
    g: Any
    rho: Any
    g_y: Any
    g_theta: Any
    Hv: Any
    Jtv: Any
    Jw: Any
    Gv: Any
    Ktv: Any


def flat(tree: PyTree) -> np.ndarray:
    """All leaves in one vector, on the host."""
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(jax.device_get(tree))])


def norms(rows: np.ndarray) -> np.ndarray | np.floating:
    return np.linalg.norm(rows, axis=-1)


def unit(rows: np.ndarray, otherwise: np.ndarray | None = None) -> np.ndarray:
    """Rows of length one; `otherwise` for those that are zero or not finite."""
    size = norms(rows)[..., None]
    good = (size > 0) & np.isfinite(size)
    return np.where(good, rows / np.where(good, size, 1), 0 if otherwise is None else otherwise)


class Probe:
    """A problem at one theta, as functions of rows y; `like` is an x, `n` and `d` the sizes of x and theta.

    `eps`: the spacing of the dtype; `root`: W^{-1/2}; `y`, `scale`: where distances are measured from, and 1 + ||x||.
    """

    def __init__(self, problem: AbstractProblem, theta: PyTree, like: PyTree, seed: int):
        x = flat(like)
        self.problem, self.theta, self.like, self.seed = problem, theta, like, seed
        self.dtype, self.n, self.d = x.dtype, x.size, flat(theta).size
        self.eps = float(np.finfo(x.dtype).eps)
        self.small = self.n <= DENSE
        self.root = np.ones_like(x)
        self.y = x
        self.constants, _ = self.declared()
        if self.constants.metric is not None:
            self.root = (1 / np.sqrt(flat(self.constants.metric))).astype(self.dtype)
        self.move_to(like)

    def move_to(self, x: PyTree) -> None:
        """Distances are measured from x."""
        x = flat(x).astype(np.float64)
        self.y, self.scale = x / self.root, 1 + float(norms(x))

    def theta_at(self, step: np.ndarray) -> PyTree:
        """theta moved by a step, which is flat."""
        leaves, structure = jax.tree.flatten(jax.device_get(self.theta))
        parts = np.split(step, np.cumsum([leaf.size for leaf in leaves])[:-1])
        moved = [(leaf + part.reshape(leaf.shape)).astype(leaf.dtype) for leaf, part in zip(leaves, parts, strict=True)]
        return jax.tree.unflatten(structure, moved)

    def __call__(self, y: np.ndarray, v=None, w=None, theta: PyTree | None = None) -> Seen:
        """Rows, or single vectors that belong to all rows; v and w are zero unless given."""
        v = np.zeros(self.n) if v is None else v
        w = np.zeros(self.d) if w is None else w
        rows = max(len(np.atleast_2d(a)) for a in (y, v, w))
        size = ROWS if self.small else 1
        padded = -(-rows // size) * size
        y, v, w = (
            np.resize(np.broadcast_to(np.asarray(a, self.dtype), (rows, np.shape(a)[-1])), (padded, np.shape(a)[-1]))
            for a in (y, v, w)
        )
        theta = self.theta if theta is None else theta
        parts = []
        for k in range(0, padded, size):
            part = slice(k, k + size)
            parts.append(
                jax.device_get(second_order(self.problem, theta, self.like, self.root, y[part], v[part], w[part]))
            )
        return Seen(*(np.concatenate(field)[:rows].astype(np.float64) for field in zip(*parts, strict=True)))

    def declared(self, y: np.ndarray | None = None, q: np.ndarray | None = None, radius: float = 0.0):
        """(constants, bounds), numbers as floats; the bounds at y for q, within the radius."""
        y, q = (np.asarray(self.y if a is None else a, self.dtype) for a in (y, q))
        radius = np.asarray(radius, self.dtype)
        out = declarations(self.problem, self.theta, self.like, self.root, y, q, radius)
        return jax.tree.map(lambda leaf: float(leaf) if np.ndim(leaf) == 0 else leaf, jax.device_get(out))

    def distance(self, y: np.ndarray) -> float:
        """||x - xhat||, from y."""
        return float(norms(self.root * (y - self.y)))

    def jitter(self, y: np.ndarray, v: np.ndarray, copies: int = 8) -> Seen:
        """At `copies` points that differ from each row of y by its rounding: fields are (copies, rows, ...)."""
        y = np.asarray(y, self.dtype)
        ulps = np.random.default_rng(self.seed).integers(-2, 3, (copies, *y.shape))
        near = (y * (1 + ulps * self.eps)).astype(self.dtype).reshape(-1, self.n)
        seen = self(near, np.broadcast_to(v, (copies, *y.shape)).reshape(-1, self.n))
        return Seen(*(field.reshape(copies, len(y), *field.shape[1:]) for field in seen))


class Curvature(NamedTuple):
    """At one point: the eigenvalues of H and G that end their spectra, ||J||, ||K||; `noise`, what rounding hides of H.

    Exact for small problems; of large ones Ritz values, which lie inside the spectrum. `largest` is that of d2h/dx2.
    """

    y: np.ndarray
    finite: bool
    smallest: float
    flattest: np.ndarray
    largest: float
    noise: float
    g_low: float
    g_high: float
    g_noise: float
    J: float
    K: float


def curvatures(probe: Probe, points: np.ndarray) -> list[Curvature]:
    """Of every point, in one batch if the problem is small."""
    eye = np.eye(probe.n) if probe.small else None
    if probe.small:
        seen = probe(np.repeat(points, probe.n, axis=0), np.tile(eye, (len(points), 1)))
        seen = Seen(*(field.reshape(len(points), probe.n, *field.shape[1:]) for field in seen))
    out = []
    for k, y in enumerate(points):
        if probe.small:
            of_h, of_g = (eye, seen.Hv[k], seen.Jtv[k]), (eye, seen.Gv[k], seen.Ktv[k])
            finite = all(np.isfinite(field[k]).all() for field in seen)
        else:
            of_h, of_g = krylov(probe, y, "Hv", "Jtv"), krylov(probe, y, "Gv", "Ktv")
            finite = all(np.isfinite(part).all() for part in (*of_h, *of_g))
        out.append(_curvature(probe, y, of_h, of_g, finite))
    return out


def krylov(probe: Probe, y: np.ndarray, field: str, across: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An orthonormal basis by Lanczos with the operator `field`, its products, and the fields `across`."""
    rng = np.random.default_rng(probe.seed)
    basis, products, crosses = [unit(rng.standard_normal(probe.n))], [], []
    while len(products) < min(KRYLOV, probe.n):
        seen = probe(y, basis[-1])
        products.append(getattr(seen, field)[0])
        crosses.append(getattr(seen, across)[0])
        rest, scale = products[-1], norms(products[-1])
        for _ in range(2):
            rest = rest - np.asarray(basis).T @ (np.asarray(basis) @ rest)
        if not norms(rest) > 1e3 * probe.eps * scale:  # an invariant subspace: go on outside it
            rest = rng.standard_normal(probe.n)
            for _ in range(2):
                rest = unit(rest - np.asarray(basis).T @ (np.asarray(basis) @ rest))
        basis.append(unit(rest))
    return np.asarray(basis[:-1]), np.asarray(products), np.asarray(crosses)


def _curvature(probe, y, of_h, of_g, finite):
    if not finite:
        return Curvature(y, False, *9 * (np.nan,))
    (V, HV, JtV), (U, GU, KtU) = of_h, of_g
    H, G = V @ HV.T, U @ GU.T
    values, vectors = np.linalg.eigh((H + H.T) / 2)
    g_values = np.linalg.eigvalsh((G + G.T) / 2)
    # d2h/dx2 on the same subspace: c^T H c / c^T V W^{-1} V^T c
    root = np.linalg.cholesky((V * probe.root**2) @ V.T)
    inverse = np.linalg.inv(root)
    largest = np.linalg.eigvalsh(inverse @ (H + H.T) @ inverse.T / 2)[-1]
    noise, g_noise = (
        8 * probe.eps * len(A) ** 0.5 * np.max(np.abs(e)) + norms((A - A.T).ravel())
        for A, e in ((H, values), (G, g_values))
    )
    return Curvature(
        y, True, values[0], vectors[:, 0] @ V, largest, noise, g_values[0], g_values[-1], g_noise,
        np.linalg.norm(JtV, 2), np.linalg.norm(KtU, 2),
    )  # fmt: skip
