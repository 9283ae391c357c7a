"""Restoration of images from what a linear map lets through, with a learned regulariser.

    h(x, theta) = 1/2 ||A x - y||^2 + R(x, theta) + e/2 ||x||^2,        e = floor + e^elastic
    g(x) = 1/n sum over images of 1/2 ||x - x_clean||^2

Sums and norms are over all n images. A is an operator, R a regulariser, each a part of its own.
"""

import equinox as eqx
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from bilevel import AbstractProblem, Bounds, Constants
from bilevel._program import program

from ._operators.base import AbstractOperator
from ._operators.identity import Identity
from ._regularisers.base import AbstractRegulariser
from ._restoration_checks import alike, image_shape, least_weight, of_dtype, parts
from ._stacks import Order, each, hypot, largest, root, smallest, stacked, top, unstacked
from .inputs import floats

Images = PyTree[Float[Array, "..."]]  # a stack, or a tuple of stacks
Scalar = Float[Array, ""]
Theta = PyTree[Float[Array, "..."]]


class Restoration(AbstractProblem):
    """`Restoration(clean, data, regulariser, operator)`; theta is the regulariser's dict, and "elastic" () with it.

    - `clean`: (n, height, width), or with channels (n, height, width, channels), float32 or float64, finite; None to
      restore only (`upper` then raises). Or a list of images (height, width) or (height, width, channels) of any sizes:
      x is then a tuple of stacks, one for each size, and `images(x)` the list.
    - `data`: what the operator makes of such images, plus noise; of the same dtype. A list if `clean` is one.
    - `regulariser`, `operator`: `TV`, `Experts`, ...; `Identity`, `Blur`, ...; their floats become the data's dtype.
    - `elastic`: adds e/2 ||x||^2. Needed where A^T A is singular, since mu = lambda_min(A^T A) + e must be positive.
    - `floor`: the least e, at least 0; by default e^-6 where lambda_min(A^T A) is less, else 0. Bounds on the
      hypergradient grow like 1/mu^2.

    Certificates are "proven" where the eigenvalues of A^T A and the regulariser's constants are. Raises TypeError for
    dtypes and ValueError for shapes and values, those of theta where it is first used.
    """

    clean: Images | None
    data: Images
    regulariser: AbstractRegulariser
    operator: AbstractOperator
    elastic: bool = eqx.field(static=True)
    floor: float = eqx.field(static=True)
    order: Order | None = eqx.field(static=True)

    # All checks are here, where JAX never comes when it rebuilds a problem from its leaves.
    def __init__(
        self,
        clean: ArrayLike | list | None,
        data: ArrayLike | list,
        regulariser: AbstractRegulariser,
        operator: AbstractOperator = Identity(),
        *,
        elastic: bool = False,
        floor: float | None = None,
    ):
        parts(regulariser, operator)
        self.order = None
        if clean is not None and isinstance(clean, list) != isinstance(data, list):
            raise TypeError("of data and clean one is a list of images: pass a list of both, or stacks")
        if isinstance(data, list):
            (data, *others), self.order = stacked(data) if clean is None else stacked(data, clean)
            clean = others[0] if others else None
        data = tuple(operator.measured(v) for v in each(data))
        operator, regulariser = (of_dtype(part, data[0].dtype) for part in (operator, regulariser))
        shapes = tuple(image_shape(operator, y) for y in data)
        self.data, self.clean = data if self.order else data[0], None
        if clean is not None:
            clean = tuple(floats("clean", v) for v in each(clean))
            for v, shape, y in zip(clean, shapes, data, strict=True):
                alike(v, shape, y)
            self.clean = clean if self.order else clean[0]
        self.operator, self.regulariser = operator, regulariser.bind(data[0])
        self.elastic, self.floor = elastic, least_weight(operator, shapes, elastic, floor, regulariser.concavity)

    def lower(self, x: Images, theta: Theta) -> Scalar:
        """h(x, theta). Raises ValueError if theta has the wrong leaves or shapes."""
        named, e, _ = self.parts(theta)
        h = 0.0
        for v, y in zip(each(x), each(self.data), strict=True):
            h += self.operator.misfit(v, y) + self.regulariser.value(v, named)
            h += e / 2 * jnp.sum(v**2) if self.elastic else 0.0
        return h

    def upper(self, x: Images, theta: Theta) -> Scalar:
        """g(x). Raises ValueError if there are no clean images."""
        if self.clean is None:
            name = type(self).__name__
            raise ValueError(f"the upper level compares with clean images: pass them, {name}(clean, ...)")
        stacks = zip(each(x), each(self.clean), strict=True)
        return sum(jnp.sum((v - clean) ** 2) for v, clean in stacks) / (2 * self.count)

    def guess(self, theta: Theta) -> Images:
        """A^T y over the largest eigenvalue of A^T A; for `Identity` the data."""
        if isinstance(self.operator, Identity):
            return self.data
        x = _projected_back(self)
        return x if self.order else x[0]

    def images(self, x: Images) -> list[Array]:
        """x as a list of images, in the order in which they were passed."""
        return unstacked(x, self.order) if self.order else list(x)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of the stacks of x."""
        return [self.operator.image_shape(y.shape) for y in each(self.data)]

    @property
    def count(self) -> int:
        """The number n of images."""
        return sum(len(y) for y in each(self.data))

    def constants(self, theta: Theta) -> Constants:
        """Of a stack, with lambda the eigenvalues of A^T A, e' = e^elastic, and the regulariser's where it says R:

            mu = lambda_min + e + mu_R,   L = lambda_max + e + L_R,   L_H = L_H_R,   L_J = sqrt(L_J_R^2 + e'^2)

        and of all stacks, on which H is block diagonal and J is one below the other, the least mu and the largest
        others. L is left to Lanczos where lambda_max is not proven.
        """
        # reach: <grad R(x), x> >= 0 for a convex R that is least at 0, so that at xhat ||A x||^2 + e ||x||^2 <=
        # <A x, y>. Hence ||A x|| <= ||y||, and (lambda_min + e) ||x||^2 <= ||y||^2; A^T y / lambda_max is no longer
        # than ||y|| / sqrt(lambda_max). One not convex is even: grad h(0) = -A^T y, ||xhat|| <= ||A^T y|| / mu.
        named, e, slope = self.parts(theta)
        found = [self._of_stack(named, e, slope, y) for y in each(self.data)]

        def over(join, name):
            return join([getattr(known, name) for known in found])

        one = jnp.ones_like(e)
        return Constants(
            mu=over(smallest, "mu"),
            L=over(largest, "L") if self.operator.proven else None,
            L_upper=one / self.count,
            L_upper_theta=0 * one,
            L_hessian=over(largest, "L_hessian"),
            L_cross=over(largest, "L_cross"),
            rounding=over(root, "rounding") if self.operator.rounding else None,
            rounding_cross=over(root, "rounding_cross"),
            convex_upper=True,
        )

    def _of_stack(self, named, e, slope, y):
        shape, norm_y = self.operator.image_shape(y.shape), jnp.linalg.norm(y)
        low, high = self._extremes(shape)
        reach = norm_y / jnp.sqrt(jnp.minimum(low + e, high))
        if bend := self.regulariser.concavity:
            reach = jnp.maximum(reach, jnp.sqrt(high) * norm_y / (low + e - bend))
        known = self.regulariser.constants(named, shape, reach)
        return Constants(
            mu=None if known.mu is None else low + e + known.mu,
            L=None if known.L is None else high + e + known.L,
            L_hessian=known.L_hessian,
            L_cross=hypot(known.L_cross, slope),
            rounding=self.operator.rounding * jnp.sqrt(high) * norm_y,
            rounding_cross=hypot(known.rounding_cross, 16 * slope * reach),
        )

    def bounds(self, x: Images, theta: Theta, q: Images, radius: Scalar) -> Bounds:
        """||J(x)||, exactly where the regulariser has its columns; M_H = max M_H_R over the stacks, L_J as above, and

        M_J = sqrt(sum of M_J_R^2 over the stacks + e'^2 ||q||^2).
        """
        # ||(H - H') q||^2 = sum ||(H_s - H'_s) q_s||^2 <= max M_s^2 sum ||x_s - x'_s||^2;  (J - J')^T q = sum over s of
        # (J_s - J'_s)^T q_s, at most sum M_s ||x_s - x'_s||. The elastic term adds one column, e' x.
        named, _, slope = self.parts(theta)
        stacks = list(zip(each(x), each(q), strict=True))
        found = [self.regulariser.bounds(v, named, p, radius) for v, p in stacks]
        columns = [self.regulariser.columns(v, named) for v, _ in stacks]
        if any(c is None for c in columns):
            J, norm_x = root([b.J for b in found]), root([jnp.linalg.norm(v) for v, _ in stacks])
            J = hypot(J, slope * norm_x)
        else:
            J = top([c + [slope * v] * self.elastic for c, (v, _) in zip(columns, stacks, strict=True)])
        norm_q = root([jnp.linalg.norm(p) for _, p in stacks])
        return Bounds(
            J=J,
            M_H=largest([b.M_H for b in found]),
            M_J=hypot(root([b.M_J for b in found]), slope * norm_q),
            L_J=hypot(largest([b.L_J for b in found]), slope),
        )

    def named(self, theta: Theta) -> dict[str, Array]:
        """theta by name. Raises ValueError if it is not a dict."""
        if not isinstance(theta, dict):
            raise ValueError(f"theta must be a dict of arrays by name, not {type(theta).__name__}")
        return theta

    def parts(self, theta: Theta) -> tuple[dict[str, Array], Scalar, Scalar]:
        """The regulariser's theta, e and de/delastic = e^elastic. Raises ValueError for leaves and shapes."""
        named, e = dict(self.named(theta)), jnp.zeros((), each(self.data)[0].dtype)
        slope = e
        if self.elastic:
            if jnp.shape(named.get("elastic", "none")) != () or "elastic" not in named:
                raise ValueError(f'with elastic=True theta needs a number "elastic"; it has {list(named)}')
            slope = jnp.exp(named.pop("elastic"))
            e = slope + self.floor
        for shape in self.shapes:
            self.regulariser.check(named, shape)
        return named, e, slope

    def _extremes(self, shape):
        """Of A^T A, in the dtype of the data."""
        dtype = each(self.data)[0].dtype
        return tuple(jnp.asarray(value, dtype) for value in self.operator.extremes(shape))


@program  # in one piece: by itself each operation would be compiled
def _projected_back(problem):
    tops = [problem._extremes(shape)[1] for shape in problem.shapes]
    return tuple(problem.operator.adjoint(y) / top for y, top in zip(each(problem.data), tops, strict=True))
