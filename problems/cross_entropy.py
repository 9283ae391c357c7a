"""Mean cross-entropy of linear scores, with derivatives by hand that read each block of rows once.

    l(W) = 1/n sum_i CE(W^T a_i, y_i),              CE(s, y) = log sum_c e^{s_c} - s_y
    grad l(W) = 1/n sum_i a_i (p_i - e_{y_i})^T,    p_i = softmax(W^T a_i)
    D^2 l(W) V = 1/n sum_i a_i t_i^T,               t_i = (diag(p_i) - p_i p_i^T) V^T a_i
    dl/da_i = 1/n W (p_i - e_{y_i}),                what the rounding of l is measured with

The derivatives in W are two products each with A, a row of which is needed in the first only when it is needed in the
second: block by block the rows are in the cache by then. JAX's own derivatives go through A twice;
experiments/benchmarks/bench_kernels.py measures the difference. Scores are (classes, rows): a softmax of ten classes is
then ten operations on long vectors.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, Int

Weights = Float[Array, "features classes"]
Features = Float[Array, "n features"]
Labels = Int[Array, " n"]

CACHED = 2**19  # bytes of a block: with what is computed from it, a second-level cache of a megabyte holds it


def block_rows(A: Features) -> int:
    """How many rows of A to take at a time. All of them on accelerators, whose cache is not per core; over several
    devices, where a block would lie on one of them; where A is small, or its rows so long that blocks would be thin."""
    rows = CACHED // (A.shape[1] * A.dtype.itemsize)
    one_core = len(A.devices()) == 1 and next(iter(A.devices())).platform == "cpu"
    if not one_core or rows < 64 or 8 * rows > len(A):
        return len(A)
    # a divisor if there is one: a rest of another size is compiled apart
    return next((r for r in range(rows, rows // 2, -1) if len(A) % r == 0), rows)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def cross_entropy(W: Weights, A: Features, y: Labels, rows: int) -> Float[Array, ""]:
    """l(W), `rows` of A at a time. Differentiable in W, and once in A; TypeError for a derivative in A of grad l."""
    return value_and_gradient(W, A, y, rows)[0]


@functools.partial(cross_entropy.defjvp, symbolic_zeros=True)
def cross_entropy_jvp(rows, primals, tangents):
    (W, A, y), (V, dA, _) = primals, tangents
    value, gradient = value_and_gradient(W, A, y, rows)
    change = jnp.zeros_like(value)
    if not isinstance(V, SymbolicZero):
        change += jnp.vdot(gradient, V)
    if not isinstance(dA, SymbolicZero):
        # over all rows at once: what is kept is (classes, n), and transposed this writes the n gradients once
        Wt = _rows_of(W)
        p = jax.nn.softmax(_matmul(Wt, A.T), axis=0)
        change += jnp.vdot(p - _chosen(p, y), _matmul(Wt, dA.T)) / len(A)
    return value, change


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def value_and_gradient(W: Weights, A: Features, y: Labels, rows: int) -> tuple[Float[Array, ""], Weights]:
    """l(W) and grad l(W)."""
    Wt = _rows_of(W)

    def block(A, y):
        s = _matmul(Wt, A.T)
        top = jnp.max(s, axis=0, keepdims=True)
        e = jnp.exp(s - top)
        total = jnp.sum(e, axis=0, keepdims=True)
        chosen = _chosen(s, y)
        # CE = m + log(e^{-m} + sum of the other e^{s_c - top}), m = top - s_y: to its last digits where the data are
        # fitted well, m = 0 and the others tiny, which a sum with 1, or a difference of two sums over rows, would lose
        m = top - jnp.sum(chosen * s, axis=0, keepdims=True)
        losses = m + jnp.log1p(jnp.expm1(-m) + jnp.sum((1 - chosen) * e, axis=0, keepdims=True))
        return jnp.sum(losses), _matmul(e / total - chosen, A)

    value, gradient = _sum(block, rows, A, y)
    return value / len(A), gradient.T / len(A)


@functools.partial(value_and_gradient.defjvp, symbolic_zeros=True)
def value_and_gradient_jvp(rows, primals, tangents):
    W, A, _ = primals
    V = _along(tangents)
    # of W alone, and outside the blocks: in a loop over V, as in conjugate gradients, XLA computes it once
    p = jax.nn.softmax(_matmul(_rows_of(W), A.T), axis=0)
    Vt = _rows_of(V)

    def block(A, p):
        t = p * _matmul(Vt, A.T)
        return _matmul(t - p * jnp.sum(t, axis=0, keepdims=True), A)

    value, gradient = value_and_gradient(*primals, rows)
    return (value, gradient), (jnp.vdot(gradient, V), _sum(block, rows, A, p).T / len(A))


def _sum(block, rows, A, columns):
    """The sum of block(A_b, columns_b) over blocks of rows of A and the same columns of `columns`."""

    def part(start, size):
        return block(lax.dynamic_slice_in_dim(A, start, size), lax.dynamic_slice_in_dim(columns, start, size, axis=-1))

    if rows >= len(A):
        return block(A, columns)
    blocks, rest = divmod(len(A), rows)
    last = part(blocks * rows, rest)  # of no rows at all, it is zero
    return lax.fori_loop(0, blocks, lambda b, total: jax.tree.map(jnp.add, total, part(b * rows, rows)), last)


def _chosen(s, y):
    """e_y, one column a row of A."""
    return (jnp.arange(len(s), dtype=y.dtype)[:, None] == y[None]).astype(s.dtype)


def _rows_of(W):
    """W^T in memory, not as a flag of the product: that took a third longer."""
    return lax.optimization_barrier(W.T)


def _matmul(a, b):
    """The precision forbids GPUs to round float32 to 10 bits."""
    return jnp.matmul(a, b, precision="highest")


def _along(tangents):
    V, dA, _ = tangents
    if not isinstance(dA, SymbolicZero):
        raise TypeError("the gradient of cross_entropy has derivatives in the weights only, not in the features")
    return V
