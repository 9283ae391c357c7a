"""What is compiled: jitted, and with every product of matrices in the full precision of its dtype.

Accelerators multiply float32 in fewer bits unless told otherwise (TF32 has u = 2^-11), and then no bound that reckons
with float32's roundoff would hold.

On a CPU nearly all that a small problem takes is compiling. There a program of few numbers is compiled with as little
optimisation as XLA allows: the paper's quadratic is solved from cold in less than half of the processor time, and its
gradients take as long as before, for at that size calling a kernel costs more than running it. The numbers in the
arguments decide, so the same call is the same program, and its results the same, on every run.
"""

import functools
from collections.abc import Callable

import equinox as eqx
import jax
from jax.extend.core import get_opaque_trace_state

FEW = 2**15  # numbers in the arguments of a program: a quarter of a megabyte, where vector instructions begin to tell
QUICKLY = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}
with jax.ensure_compile_time_eval():  # whoever imports this may be tracing
    UNTRACED = get_opaque_trace_state()


def program(function: Callable, few: int = FEW) -> Callable:
    """`function`, compiled as `equinox.filter_jit` does, at the highest precision; `.lower(*args)` shows it. `few`: of
    so many numbers it is compiled quickly; 0 for what is called very often."""
    thorough = eqx.filter_jit(function)
    quick = functools.cache(lambda: eqx.filter_jit(function, compiler_options=quickly()))

    @functools.wraps(function)
    def run(*args, **kwargs):
        with jax.default_matmul_precision("highest"):
            return (quick() if few and small(args, kwargs, few=few) else thorough)(*args, **kwargs)

    @functools.wraps(function)
    def lower(*args, **kwargs):
        with jax.default_matmul_precision("highest"):
            return thorough.lower(*args, **kwargs)

    run.lower = lower
    return run


def small(*arguments, few: int = FEW) -> bool:
    """Whether a program of these arguments is compiled quickly: few numbers, on a CPU, and in no other program, which
    would be compiled as a whole."""
    if jax.default_backend() != "cpu" or get_opaque_trace_state() != UNTRACED:
        return False
    return sum(leaf.size for leaf in jax.tree.leaves(arguments) if eqx.is_array(leaf)) <= few


@functools.cache
def quickly() -> dict[str, bool | int]:
    """Of these options those that this XLA knows; they are its own, and come and go with its versions."""
    return {name: value for name, value in QUICKLY.items() if _understood(name, value)}


def _understood(name: str, value: bool | int) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options={name: value})()
    except jax.errors.JaxRuntimeError:
        return False
    return True
