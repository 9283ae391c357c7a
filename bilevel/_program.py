"""What is compiled: jitted, and with every product of matrices in the full precision of its dtype.

Accelerators multiply float32 in fewer bits unless told otherwise (TF32 has u = 2^-11), and then no bound that reckons
with float32's roundoff would hold.
"""

import functools
from collections.abc import Callable

import equinox as eqx
import jax


def program(function: Callable) -> Callable:
    """`function`, compiled as `equinox.filter_jit` does, at the highest precision; `.lower(*args)` shows it."""
    jitted = eqx.filter_jit(function)

    def at_highest(call):
        @functools.wraps(function)
        def run(*args, **kwargs):
            with jax.default_matmul_precision("highest"):
                return call(*args, **kwargs)

        return run

    run = at_highest(jitted)
    run.lower = at_highest(jitted.lower)
    return run
