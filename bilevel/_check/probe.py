"""What `check_problem` measures at a point: one small program, compiled once and called often; the rest is NumPy.

    (y, v, w)  ->  h, g, their gradients,  H v, J w, J^T v,  G v, K^T v        H = d2h/dy2, J = d2h/dydtheta; G, K of g

y = W^{1/2} x where a metric W is declared, and x else, so that Euclidean norms are the ones that are declared. Third
derivatives are never formed: a Lipschitz constant is contradicted by two points. Arrays are float64 on the host, and
have the rows first.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import PyTree

from .._problem import AbstractProblem
from .._program import program

DENSE = 256  # unknowns up to which Hessians are measured whole
ROWS = 64  # of one call, as long as that is so
KRYLOV = 24  # products at least that stand for a Hessian of a larger problem
EFFORT = 12  # the most that is spent, on problems whose evaluation costs next to nothing


class Seen(NamedTuple):
    """Measurements; None where not asked for."""

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


@program
def second_order(problem, theta, like, root, y, v, w, fields):
    """The measurements `fields` at rows y (rows, n) along v (rows, n) and w (rows, d)."""
    unravel_x, (t, unravel_t) = ravel_pytree(like)[1], ravel_pytree(theta)

    def level(function):
        return lambda y, t: function(unravel_x(root * y), unravel_t(t))

    def one(y, v, w):
        h, g = level(problem.lower), level(problem.upper)

        def first(y):
            return jax.value_and_grad(h, (0, 1))(y, t), jax.value_and_grad(g, (0, 1))(y, t)

        at_y, along_v = jax.jvp(first, (y,), (v,))
        (value, (rho, _)), (upper, (g_y, g_theta)) = at_y
        (_, (Hv, Jtv)), (_, (Gv, Ktv)) = along_v
        Jw = jax.jvp(lambda t: jax.grad(h)(y, t), (t,), (w,))[1]
        seen = Seen(value, upper, rho, g_y, g_theta, Hv, Jtv, Jw, Gv, Ktv)
        return Seen(*(array if name in fields else None for name, array in seen._asdict().items()))

    if len(y) == 1:  # of a large problem, whose code need not be fit for batches
        return jax.tree.map(lambda leaf: leaf[None], one(y[0], v[0], w[0]))
    return jax.vmap(one)(y, v, w)


@program
def declarations(problem, theta, like, root, y, q, radius):
    """(constants, bounds at y for q) of the problem."""
    unravel = ravel_pytree(like)[1]
    return problem.constants(theta), problem.bounds(unravel(root * y), theta, unravel(root * q), radius)


def flat(tree: PyTree) -> np.ndarray:
    """All leaves in one vector, on the host."""
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(jax.device_get(tree))])


def norms(rows: np.ndarray) -> np.ndarray | np.floating:
    """Of every row."""
    return np.linalg.norm(rows, axis=-1)


def unit(rows: np.ndarray, otherwise: np.ndarray | float = 0.0) -> np.ndarray:
    """Rows of length one; `otherwise` for those that are zero or not finite."""
    size = np.linalg.norm(rows, axis=-1, keepdims=True)
    good = (size > 0) & np.isfinite(size)
    return np.where(good, rows / np.where(good, size, 1), otherwise)


def _batches(problem, theta, like) -> bool:
    """Whether lower and upper can be vmapped; a callback may not."""
    rows = jax.tree.map(lambda leaf: jax.numpy.stack([leaf, leaf]), like)
    try:
        for level in (problem.lower, problem.upper):
            jax.eval_shape(jax.vmap(jax.grad(level), (0, None)), rows, theta)
    except NotImplementedError:
        return False
    return True


class Probe:
    """A problem at one theta, as functions of rows y; `like` is an x, and `n`, `d` are the sizes of x and theta.

    `constants`: what is declared. `root`: W^{-1/2}. `y`, `scale`: the point that distances are from, and 1 + ||x||
    there. `eps`: the spacing of the dtype. `dense`: whether Hessians are measured whole. `effort`, 1 to 12: falls with
    the number of data, which an evaluation is taken to be proportional to.
    """

    def __init__(self, problem: AbstractProblem, theta: PyTree, like: PyTree, seed: int):
        x = flat(like)
        self.problem, self.theta, self.like, self.seed = problem, theta, like, seed
        self.dtype, self.n, self.d = x.dtype, x.size, flat(theta).size
        self.eps = float(np.finfo(x.dtype).eps)
        self.dense = self.n <= DENSE
        self.rows = ROWS if self.dense and _batches(problem, theta, like) else 1
        data = sum(leaf.size for leaf in jax.tree.leaves(problem) if eqx.is_array(leaf))
        self.effort = min(EFFORT, max(1, 2**20 // (data + self.n)))
        self.root, self.y = np.ones_like(x), x
        self.constants, _ = self.declared()
        if self.constants.metric is not None:
            self.root = (1 / np.sqrt(flat(self.constants.metric))).astype(self.dtype)
        self.move_to(like)

    def move_to(self, x: PyTree) -> None:
        """Distances are from x."""
        x = flat(x).astype(np.float64)
        self.y, self.scale = x / self.root, 1 + float(norms(x))

    def theta_at(self, step: np.ndarray) -> PyTree:
        """theta moved by a step, which is flat."""
        leaves, structure = jax.tree.flatten(jax.device_get(self.theta))
        parts = np.split(step, np.cumsum([leaf.size for leaf in leaves])[:-1])
        moved = [(leaf + part.reshape(leaf.shape)).astype(leaf.dtype) for leaf, part in zip(leaves, parts, strict=True)]
        return jax.tree.unflatten(structure, moved)

    def __call__(self, y: np.ndarray, v=None, w=None, theta: PyTree | None = None, fields=Seen._fields) -> Seen:
        """At rows, or at single vectors that belong to all rows; v and w are zero unless given. While Hessians are
        whole there is one program, with all fields: it takes longer to compile than to run."""
        v = np.zeros(self.n) if v is None else v
        w = np.zeros(self.d) if w is None else w
        count = max(len(np.atleast_2d(a)) for a in (y, v, w))
        y, v, w = (np.broadcast_to(np.asarray(a, self.dtype), (count, np.shape(a)[-1])) for a in (y, v, w))
        theta = self.theta if theta is None else theta
        fields = Seen._fields if self.dense else fields
        parts = []
        for k in range(0, count, self.rows):
            rows = [np.resize(a[k : k + self.rows], (self.rows, a.shape[1])) for a in (y, v, w)]
            parts.append(jax.device_get(second_order(self.problem, theta, self.like, self.root, *rows, fields)))
        return jax.tree.map(lambda *field: np.concatenate(field)[:count].astype(np.float64), *parts)

    def declared(self, y: np.ndarray | None = None, q: np.ndarray | None = None, radius: float = 0.0):
        """(constants, bounds), numbers as floats; the bounds at y for q, within the radius."""
        y, q = (np.asarray(self.y if a is None else a, self.dtype) for a in (y, q))
        radius = np.asarray(radius, self.dtype)
        out = declarations(self.problem, self.theta, self.like, self.root, y, q, radius)
        return jax.tree.map(lambda leaf: float(leaf) if np.ndim(leaf) == 0 else leaf, jax.device_get(out))

    def distance(self, y: np.ndarray) -> float:
        """||x - xhat||, from y."""
        return float(norms(self.root * (y - self.y)))

    def away(self, direction: np.ndarray, far: float) -> np.ndarray:
        """The point at a distance of far (1 + ||x||) in a direction."""
        return self.y + far * self.scale / norms(self.root * direction) * direction

    def directions(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Random ones, uniform in x."""
        return unit(rng.standard_normal((count, self.n)) / self.root)

    def jitter(self, y: np.ndarray, v: np.ndarray, fields: tuple[str, ...], copies: int = 8) -> Seen:
        """At `copies` points that differ from each row of y by its rounding: fields are (copies, rows, ...)."""
        y = np.asarray(y, self.dtype)
        ulps = np.random.default_rng(self.seed).integers(-2, 3, (copies, *y.shape))
        near = (y * (1 + ulps * self.eps)).astype(self.dtype).reshape(-1, self.n)
        seen = self(near, np.broadcast_to(v, (copies, *y.shape)).reshape(-1, self.n), fields=fields)
        return jax.tree.map(lambda field: field.reshape(copies, len(y), *field.shape[1:]), seen)
