"""The products of a response: gates s = V e times what they open.

    s * z                       a row of W' for each gate, z = W' x         (arXiv 1903.03088, section 3.2)
    sum_k s_ik z_k              unit i, r rows that all units have in common, z = B x

V: (units * r, H), the r gates of a unit side by side; e: (H,).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array


def _first_order(product):
    """`product(V, z, e)`, linear in e, where e = 0, with the derivative product(V, z, de): its other parts, of dz and
    of dV, are zero there, and must not cost a product."""

    @jax.custom_jvp
    def at_zero(gate, z, e):
        return product(gate, z, e)

    @at_zero.defjvp
    def _(primals, tangents):
        (gate, z, e), (_, _, de) = primals, tangents
        return jax.lax.stop_gradient(product(gate, z, e)), product(gate, z, de)

    return at_zero


def _times(gate, z, e):
    """(V e) * z."""
    return (gate @ e).reshape(-1, *(1,) * (z.ndim - 1)) * z


def _in_common(gate, z, e):
    """sum_k (V_ik e) z_k for unit i: one product of matrices for a whole batch."""
    return gate.reshape(-1, len(z) * len(e)) @ (z[:, None] * e[None]).ravel()


_first_order_of = {product: _first_order(product) for product in (_times, _in_common)}


def gated(gate: Array, z: Array, e: Array, common: bool, linear: bool) -> Array:
    """s * z, or the sum if the rows behind z are `common` to all units; `linear`: to first order in e at e = 0, for use
    under `jax.jvp`."""
    product = _in_common if common else _times
    return (_first_order_of[product] if linear else product)(gate, z, e)


def respond(parameter: Array, weight: Array | None, gate: Array, e: Array, kind: str) -> Array:
    """The parameter of a single layer at e: p + V e where it has no W', else W + diag(V e) W', folded."""
    s = gate @ e.astype(gate.dtype)
    if weight is None:
        return parameter + s
    if kind == "columns":
        return parameter + fold(s[:, None] * weight.T, parameter.shape[-1]).T
    if kind == "rows" and in_common(weight, gate):
        return parameter + s.reshape(-1, len(weight)) @ weight
    return parameter + fold(s.reshape(-1, *(1,) * (parameter.ndim - 1)) * weight, len(parameter))


def in_common(weight: Array, gate: Array) -> bool:
    """Whether the units of a layer have the rows of W' in common, so that its response has a low rank."""
    return len(weight) < len(gate)


def fold(z: Array, units: int) -> Array:
    """The sum over the r gates of each unit, units * r along the first axis of z."""
    if len(z) == units:
        return z
    z = z.reshape(units, -1, *z.shape[1:])
    # term by term where these are few: on CPUs a sum over so short an axis takes longer than the layer
    return sum((z[:, k] for k in range(1, z.shape[1])), z[:, 0]) if z.shape[1] <= 8 else jnp.sum(z, axis=1)
