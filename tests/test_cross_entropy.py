"""The derivatives by hand are those of the definition, whatever the blocks."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel._problem import cross_product, cross_transpose_product, hessian_product, lower_gradient
from bilevel.problems import LogisticRegression
from bilevel.problems.cross_entropy import block_rows, cross_entropy

N, FEATURES, CLASSES = 30, 4, 3
ROWS = [N, 10, 7, 1]  # at a time: all, a divisor, with a rest of two, single ones


def definition(W, A, y):
    return jnp.mean(jax.nn.logsumexp(A @ W, axis=1) - jnp.take_along_axis(A @ W, y[:, None], axis=1)[:, 0])


def draw(scale=1.0, dtype=np.float64):
    rng = np.random.default_rng(0)
    W, V, U = (jnp.asarray(rng.standard_normal((FEATURES, CLASSES)), dtype) for _ in range(3))
    A = jnp.asarray(scale * rng.standard_normal((N, FEATURES)), dtype)
    return W, V, U, A, jnp.asarray(rng.integers(0, CLASSES, N), jnp.int32)


def derivatives(f, W, V, U):
    """Value, gradient, D^2 f V forward over reverse and reverse over reverse, D^3 f [V, U]."""
    value, gradient = jax.value_and_grad(f)(W)

    def product(W):
        return jax.jvp(jax.grad(f), (W,), (V,))[1]

    def slope(W):
        return jnp.vdot(jax.grad(f)(W), V)

    return f(W), value, gradient, product(W), jax.grad(slope)(W), jax.jvp(product, (W,), (U,))[1]


def close(ours, plain, tolerance):
    for a, b in zip(ours, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * float(jnp.max(jnp.abs(b))))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_derivatives_are_those_of_the_definition(rows, scale):
    W, V, U, A, y = draw(scale)
    compute = jax.jit(derivatives, static_argnums=0)
    close(
        compute(lambda W: cross_entropy(W, A, y, rows), W, V, U), compute(lambda W: definition(W, A, y), W, V, U), 1e-12
    )


@pytest.mark.parametrize("rows", ROWS)
def test_float32_and_vmap(rows):
    """One W at a time or several at once; float32 stays float32."""
    W, V, _, A, y = draw(dtype=np.float32)
    product = jax.vmap(lambda W: jax.jvp(jax.grad(lambda W: cross_entropy(W, A, y, rows)), (W,), (V,)))
    gradients, products = product(jnp.stack([W, V]))
    assert gradients.dtype == products.dtype == np.float32
    for k, at in enumerate((W, V)):
        exact = jax.jvp(jax.grad(lambda W: definition(W, A, y)), (at,), (V,))
        close((gradients[k], products[k]), exact, 1e-5)


@pytest.mark.parametrize("rows", [N, 10])
def test_a_small_loss_does_not_cancel(rows):
    """Labels that the scores tell by far: l is a thousandth and less of a score, and float32 still has its digits."""
    W, _, _, A, _ = draw(dtype=np.float32)
    W = 30 * W
    y = jnp.argmax(A @ W, axis=1)
    exact = definition(W.astype(np.float64), A.astype(np.float64), y)
    assert float(exact) < 1e-2 * float(jnp.max(A @ W))
    np.testing.assert_allclose(cross_entropy(W, A, y, rows), exact, rtol=1e-5)


@pytest.mark.parametrize("rows", [N, 10])
def test_a_loss_below_the_roundoff_keeps_its_digits(rows):
    """Scores apart by 20 to 60: a loss of e^-20, which a logarithm of 1 + e^-20 would make zero in float32."""
    rng = np.random.default_rng(0)
    scores = rng.uniform(-60, -20, (N, CLASSES)).astype(np.float32)
    y = jnp.asarray(np.arange(N) % CLASSES, jnp.int32)
    scores[np.arange(N), y] = 0
    exact = np.mean(np.log1p(np.sum(np.exp(np.sort(scores.astype(np.float64), axis=1)[:, :-1]), axis=1)))
    A, W = jnp.concatenate([scores, np.zeros_like(scores[:, :1])], axis=1), jnp.eye(FEATURES, CLASSES, dtype=np.float32)
    assert 0 < exact < 1e-8
    np.testing.assert_allclose(cross_entropy(W, A, y, rows), exact, rtol=1e-5)


def test_scores_that_overflow():
    """Classes certain to the last bit: e^s would be infinite."""
    W, _, _, A, y = draw(1e4)
    value, gradient = jax.value_and_grad(lambda W: cross_entropy(W, A, y, 7))(W)
    assert np.isfinite(value) and np.all(np.isfinite(gradient)) and value > 1e3


@pytest.mark.parametrize("rows", [N, 7])
def test_the_derivative_in_the_features_is_that_of_the_definition(rows):
    """Forward, reverse, and beside the one in W."""
    W, V, _, A, y = draw()
    B = jnp.cos(A)

    @partial(jax.jit, static_argnums=0)
    def derivatives(f):
        return (
            jax.grad(f, argnums=1)(W, A), *jax.grad(f, argnums=(0, 1))(W, A),
            jax.jvp(lambda A: f(W, A), (A,), (B,))[1], jax.jvp(f, (W, A), (V, B))[1],
        )  # fmt: skip

    ours = derivatives(lambda W, A: cross_entropy(W, A, y, rows))
    close(ours, derivatives(lambda W, A: definition(W, A, y)), 1e-12)


def test_derivatives_in_the_weights_alone_do_not_pay_for_the_features():
    """The derivative in A takes the scores, and so a softmax, once more; nothing else does."""
    W, _, _, A, y = draw()

    def softmaxes(f):
        return len(re.findall(r"= exp\b", str(jax.make_jaxpr(f)(W, A))))

    def loss(W, A):
        return cross_entropy(W, A, y, N)

    assert softmaxes(loss) == softmaxes(jax.value_and_grad(loss)) == 1
    assert softmaxes(jax.grad(loss, argnums=1)) == 2


def test_no_silent_zero_for_a_derivative_in_the_features_of_the_gradient():
    W, _, _, A, y = draw()
    for f in (
        lambda A: jax.grad(lambda W: cross_entropy(W, A, y, N))(W),
        jax.grad(lambda A: cross_entropy(W, A, y, N)),
    ):
        with pytest.raises(TypeError, match="weights only"):
            jax.jvp(f, (A,), (A,))


def test_blocks_are_taken_from_large_data_only():
    """Half a megabyte or less, a divisor of the rows if one is near; everything at once if small or over devices."""
    large, prime, small = jnp.zeros((60_000, 16)), jnp.zeros((39_989, 16)), jnp.zeros((1_797, 16))
    assert block_rows(large) == 4000 and block_rows(prime) == 2**19 // (16 * 8) and block_rows(small) == 1_797
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("rows",))
    spread = jax.device_put(large, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("rows")))
    assert block_rows(spread) == 60_000


def test_a_problem_in_blocks_has_the_derivatives_of_its_definition():
    """Every product that the engine asks for, of a problem large enough to be cut."""
    rng = np.random.default_rng(1)
    data = [(rng.standard_normal((n, 1024)) / 32, np.arange(n) % CLASSES) for n in (600, 530)]
    problem = LogisticRegression(*data[0], *data[1])
    assert problem.train.block < 600 and problem.valid.block < 530

    class Plain(LogisticRegression):
        def lower(self, x, theta):
            return definition(x, self.A, self.y) + jnp.sum(jnp.exp(theta) * x**2) / 2

        def upper(self, x, theta):
            return definition(x, self.A_valid, self.y_valid)

    x, theta, v = (jnp.asarray(rng.standard_normal((1024, CLASSES))) for _ in range(3))

    @jax.jit
    def products(problem):
        return (
            problem.lower(x, theta), lower_gradient(problem, x, theta), hessian_product(problem, x, theta, v),
            cross_product(problem, x, theta, v), cross_transpose_product(problem, x, theta, v),
            *jax.value_and_grad(problem.upper)(x, theta),
        )  # fmt: skip

    close(products(problem), products(Plain(*data[0], *data[1])), 1e-12)
