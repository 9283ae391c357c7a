"""The jitted programs of a move: where to, from whose guess of x. They cost nothing of the lower level."""

import jax
import jax.numpy as jnp
import optax

from .._linalg.norms import norm
from .._program import program
from .region import free, keep_certifiable, project


@program
def query(direction, memory, theta, z, omega, box):
    """What the direction answers, and the length of what of d can move theta: with entries that are held, alpha would
    be reckoned too short."""
    memory, d, heading = direction.query(memory, theta, z, omega, box)
    moving = d if box is None else jax.tree.map(lambda d, free: jnp.where(free, d, 0), d, free(theta, z, box))
    return memory, d, jax.tree.map(jnp.asarray, heading), norm(moving)


@program
def observe(predictor, memory, theta, x):
    return predictor.observe(memory, theta, x)


@program
def propose(problem, predictor, guesses, theta, x, z, d, alpha, limit, box):
    """theta+, a guess of its x, ||theta+ - theta||, and <z, theta - theta+>."""
    trial = project(optax.tree.add_scale(theta, alpha, d), box)
    if limit is not None:
        trial = project(keep_certifiable(problem, trial, limit), box)
    step = optax.tree.sub(trial, theta)
    return trial, predictor.guess(guesses, theta, x, trial), norm(step), -optax.tree.vdot(z, step)
