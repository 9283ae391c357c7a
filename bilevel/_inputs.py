"""What is checked before anything runs, and made uniform: arrays of the data's dtype, theta and x of known structure.

Everything here raises ValueError or TypeError with what is wrong and what to write instead.
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ._chunked import Chunked
from ._leaves import data_dtype, describe, field, floating
from ._linalg.sharding import replicate
from ._linalg.vectors import Box, Vector
from ._problem import AbstractProblem, Constants
from ._program import program


def prepare(
    problem: AbstractProblem, theta: PyTree, x0: PyTree | None, levels: tuple[str, ...] = ("lower", "upper")
) -> tuple[AbstractProblem, Vector, Vector]:
    """(problem, theta, x0) ready for jit, or the error that says what to write instead.

    Python floats in the problem and in theta become arrays of the data's dtype: as Python floats each value would
    retrace, and as float64 scalars they would widen float32 data. Where x lies on a mesh of devices a theta that does
    not is copied to all of them.
    """
    _usable(problem, theta, x0)
    if isinstance(problem, Chunked):
        return _chunks(problem, theta, x0, levels)
    dtype = data_dtype(problem, x0)
    problem = uniform(problem, dtype)
    theta = floating(theta, dtype, "theta0")
    guessed = type(problem).guess is not AbstractProblem.guess
    if x0 is not None and guessed:
        same_shapes(x0, jax.eval_shape(problem.guess, theta), "x0", f"{type(problem).__name__}.guess")
    x0 = floating(problem.guess(theta) if x0 is None else x0, dtype, "x0")
    theta = replicate(theta, x0)

    for name in levels:
        try:
            shape = jax.eval_shape(getattr(problem, name), x0, theta)
        except (TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
            kind = TypeError if isinstance(error, TypeError | AttributeError) else ValueError
            raise kind(
                f"{type(problem).__name__}.{name}(x, theta) failed on x {describe(x0)} and theta {describe(theta)}: "
                f"{error}\nDo x0 and theta0 have the structure and shapes that the problem expects?"
            ) from error
        if not hasattr(shape, "shape") or shape.shape != () or not jnp.issubdtype(shape.dtype, jnp.floating):
            raise TypeError(
                f"{type(problem).__name__}.{name} must return a scalar of floating dtype, not {_made(shape)}"
            )
        if shape.dtype != dtype:
            raise TypeError(
                f"{type(problem).__name__}.{name} returns {shape.dtype} although the data are {dtype}: build the "
                "arrays inside it with the dtype of x"
            )
    check_declared(problem, theta)
    return problem, theta, x0


def _chunks(problem, theta, x0, levels):
    """By the first unit, the others where they are made. There is no x: each starts from its own guess."""
    if x0 is not None:
        raise ValueError("the units of a Chunked problem start from their own `guess`: leave x0 out")
    first, theta, _ = prepare(problem.first, theta, None, levels)
    known = jax.eval_shape(first.constants, theta)
    if known.mu is None or known.L is None:
        raise ValueError(
            f"{type(first).__name__}.constants declares no {'mu' if known.mu is None else 'L'}, and of Chunked units "
            "none is estimated: declare mu and L, or solve them as one problem"
        )
    return eqx.tree_at(lambda problem: problem.first, problem, first), theta, ()


def _usable(problem, theta, x0):
    """Raises TypeError for what is no problem, and under jit, vmap or grad: how long a solve runs depends on values."""
    if not isinstance(problem, AbstractProblem):
        made = isinstance(problem, type) and issubclass(problem, AbstractProblem)
        what = f"{problem.__name__} itself: make one of its data" if made else f"{type(problem).__name__}; subclass it"
        raise TypeError(f"problem must be a bilevel.AbstractProblem, not {what}")
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((problem, theta, x0))):
        raise TypeError(
            "theta or the problem's data are traced by jit, vmap or grad, but a solve that certifies itself stops "
            "where measured values say so: call this outside of them, or use bilevel.objective(problem, eps=...), a "
            "function of theta that works under all three"
        )


def check_declared(problem: AbstractProblem, theta: Vector) -> None:
    """Raises ValueError for constants that nothing can be certified by."""
    mu, thinnest = _declared(problem, theta)
    if mu is None and thinnest is not None:
        raise ValueError(
            f"{type(problem).__name__}.constants declares a metric, but no mu: H >= mu diag(metric) needs both"
        )
    if thinnest is not None and not float(thinnest) >= 1:
        raise ValueError(
            f"{type(problem).__name__}.constants declares a metric that goes down to {float(thinnest):g} at theta0: "
            "divide it by its smallest entry and multiply mu by it, so that no weight is below 1"
        )
    if mu is not None and not float(mu) > 0:
        raise ValueError(
            f"{type(problem).__name__}.constants declares mu = {float(mu):g} at theta0, but the lower level must be "
            "strongly convex: give a positive lower bound of the curvature, or None to have it estimated"
        )


def uniform(problem: AbstractProblem, dtype: np.dtype) -> AbstractProblem:
    """The problem, its floats in arrays of that dtype, which its data must have."""
    name, found = type(problem).__name__, data_dtype(problem, None)
    if found != dtype:
        raise TypeError(f"{name} has data of {found}, and others of the same run of {dtype}: convert them to one dtype")
    return jax.tree.map(lambda leaf: field(leaf, dtype, name), problem)


@program  # a loop in a problem's constants would otherwise be compiled anew in every call
def _declared(problem, theta):
    """mu and the smallest weight of the metric, each None if it is not declared."""
    constants, name = problem.constants(theta), f"{type(problem).__name__}.constants"
    if not isinstance(constants, Constants):
        raise TypeError(f"{name} must return bilevel.Constants(...), not {type(constants).__name__}")
    for known in dataclasses.fields(constants):
        value = getattr(constants, known.name)
        if known.name != "metric" and np.shape(value) != ():
            raise TypeError(f"{name} declares {known.name} of shape {np.shape(value)}, but it must be one number")
    weights = jax.tree.leaves(constants.metric)
    return constants.mu, jnp.min(jnp.stack([jnp.min(w) for w in weights])) if weights else None


def same_shapes(tree: PyTree, like: PyTree, name: str, model: str) -> None:
    """Raises ValueError unless `tree` has the structure and shapes of `like`: what broadcasts would go unnoticed."""
    shapes, expected = (jax.tree.map(lambda leaf: list(np.shape(leaf)), t) for t in (tree, like))
    if jax.tree.structure(tree) != jax.tree.structure(like) or shapes != expected:
        raise ValueError(f"{name} must have the structure and shapes of {model}, {expected}; it has {shapes}")


def _made(out):
    """What a level returned, in words."""
    if not hasattr(out, "shape"):
        return repr(out)
    real = "; jnp.real takes what is real but for its dtype, such as |z|^2"
    return f"{out.dtype}{list(out.shape)}{real if jnp.issubdtype(out.dtype, jnp.complexfloating) else ''}"


def make_box(bounds: tuple | None, theta: Vector) -> Box:
    """(lo, hi), each a number or a pytree like theta, as arrays; theta0 must lie inside."""
    if bounds is None:
        return None
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        raise ValueError("bounds must be (lo, hi), each a number or a pytree like theta0")

    def fill(side, name):
        if isinstance(side, int | float):
            return jax.tree.map(lambda leaf: jnp.asarray(np.full(leaf.shape, side, leaf.dtype)), theta)
        if jax.tree.structure(side) != jax.tree.structure(theta):
            raise ValueError(f"{name} of bounds must be a number or have the structure of theta0, {describe(theta)}")
        odd = jax.tree.map(lambda value, leaf: np.shape(value) not in ((), leaf.shape), side, theta)
        if any(jax.tree.leaves(odd)):
            raise ValueError(f"{name} of bounds must have the shapes of theta0, {describe(theta)}")
        return jax.tree.map(
            lambda value, leaf: jnp.broadcast_to(jnp.asarray(value, leaf.dtype), leaf.shape), side, theta
        )

    lo, hi = fill(bounds[0], "lo"), fill(bounds[1], "hi")
    if not all(jax.tree.leaves(jax.tree.map(lambda a, b: bool(jnp.all(a <= b)), lo, hi))):
        raise ValueError("bounds=(lo, hi) must have lo <= hi everywhere, and no NaN; -np.inf and np.inf are no bound")
    if not all(jax.tree.leaves(jax.tree.map(lambda a, t, b: bool(jnp.all((a <= t) & (t <= b))), lo, theta, hi))):
        raise ValueError("theta0 lies outside bounds=(lo, hi); start inside the box")
    return lo, hi
