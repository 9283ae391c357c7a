"""Where to start: the best of a path of penalties, from the largest down, each solve begun where the last one ended.

f of one penalty has several minima where the active set changes; a path looks at all of them, coarsely, and what it
returns is a start and no more than that.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from bilevel import AbstractNonsmoothProblem
from bilevel._program import program

CHEAP = 1e4  # gradients that one penalty may take
NEAR = 1e-3  # of the length of x, or of one feature's scale: its error


@program
def best_of_path(
    problem: AbstractNonsmoothProblem, thetas: Float[Array, " count"]
) -> tuple[Float[Array, ""], Float[Array, " count"]]:
    """The theta of the least g(x), and all g(x), for one theta after the other."""

    def solve(x, theta):
        eps = NEAR * jnp.maximum(jnp.linalg.norm(x), 1e-3)
        x = problem.minimise(theta, x, problem.memory(x), eps, jnp.asarray(CHEAP, jnp.int32)).x
        return x, problem.upper(x, theta)

    _, values = lax.scan(solve, problem.guess(thetas[0]), thetas)
    return thetas[jnp.argmin(values)], values
