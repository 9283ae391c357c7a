"""Operations of a function, counted in its jaxpr: the same on every backend, and nothing is compiled.

XLA's own count is for CPUs alone: on GPUs `Lowered.cost_analysis()` is None. A root or an exponential counts ten,
moving data nothing, and what a loop repeats once.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core

TRANSCENDENTAL = 10
ROOTS = """acos acosh asin asinh atan atan2 atanh cbrt cos cosh digamma erf erf_inv erfc exp exp2 expm1 lgamma log log1p
    logistic pow rsqrt sin sinh sqrt tan tanh"""
MOVES = """bitcast_convert_type broadcast_in_dim concatenate convert_element_type copy copy_p dynamic_slice gather iota
    dynamic_update_slice optimization_barrier pad reshape rev slice split squeeze stack transpose"""


def operations(function: Callable, *args: Any) -> float:
    """Of one call with these arguments, or others of their shapes."""
    return _within(jax.make_jaxpr(function)(*args).jaxpr)


def _within(jaxpr: Any) -> float:
    """Of what its results need: under a derivative lies the value, too, and nobody asks for it."""
    needed, found = set(map(id, jaxpr.outvars)), 0.0
    for equation in reversed(jaxpr.eqns):
        if needed & set(map(id, equation.outvars)):
            needed |= set(map(id, equation.invars))
            found += _operations(equation)
    return found


def _operations(equation: Any) -> float:
    inner = list(_jaxprs(equation.params.values()))
    if inner:
        return sum(map(_within, inner))
    name, params = equation.primitive.name, equation.params
    sizes_in, sizes_out = ([math.prod(v.aval.shape) for v in side] for side in (equation.invars, equation.outvars))
    if name in MOVES.split():
        return 0.0
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2.0 * sizes_out[0] * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        features = params["rhs_shape"][params["dimension_numbers"].rhs_spec[0]]
        return 2.0 * sizes_out[0] * sizes_in[1] / features
    if name == "fft":
        return 5.0 * sizes_out[0] * math.log2(max(2, math.prod(params["fft_lengths"])))
    return float(max(sizes_in + sizes_out)) * (TRANSCENDENTAL if name in ROOTS.split() else 1)


def _jaxprs(values: Any) -> Iterator[Any]:
    """Of a loop, a branch, a jitted or custom function."""
    for value in values:
        if isinstance(value, core.ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, core.Jaxpr):
            yield value
        elif isinstance(value, tuple | list):
            yield from _jaxprs(value)
