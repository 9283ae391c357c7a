"""What is checked before the first step. All of it raises ValueError or TypeError and says what to write instead."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from .compiled import compiled
from .layers import Response
from .space import Space
from .train import Losses, State


def check_data(train: PyTree, valid: PyTree, batch_size: int) -> tuple[PyTree, PyTree]:
    """Both as JAX arrays. Raises ValueError unless each is a pytree of arrays with one leading axis, the examples."""
    checked = []
    for name, data in (("train", train), ("valid", valid)):
        shapes = [np.shape(leaf) for leaf in jax.tree.leaves(data)]
        if not shapes or any(len(shape) == 0 for shape in shapes) or len({shape[0] for shape in shapes}) != 1:
            raise ValueError(
                f"{name} must be a pytree of arrays with the same leading axis, one entry for each example, as in "
                f"(images, labels); it has shapes {shapes}"
            )
        if shapes[0][0] == 0:
            raise ValueError(f"{name} has no examples")
        checked.append(jax.tree.map(jnp.asarray, data))
    size = jax.tree.leaves(checked[0])[0].shape[0]
    if not 1 <= batch_size <= size:
        raise ValueError(f"batch_size={batch_size} must be at least 1 and at most the {size} of train")
    return checked[0], checked[1]


def check_limits(epochs: int, every: int) -> None:
    """Raises ValueError for what cannot be run."""
    if not epochs >= 1 or not every >= 1:
        raise ValueError(f"epochs and every must be at least 1; they are {epochs} and {every}")


def check_model(model: PyTree, space: Space) -> None:
    """It was converted, for this space."""
    nodes = jax.tree.leaves(model, is_leaf=lambda node: isinstance(node, Response))
    found = [node for node in nodes if isinstance(node, Response)]
    if not found:
        raise ValueError("this model does not respond to hyperparameters: pass stn.convert(model, space, key=key)")
    sizes = {gate.shape[-1] for node in found for gate in node.gates.values()}
    if sizes != {len(space)}:
        raise ValueError(
            f"the model was converted for {', '.join(map(str, sizes))} hyperparameters, but the space has "
            f"{len(space)}: convert it with the space that you tune"
        )


def check_losses(losses: Losses, state: State, train: PyTree, valid: PyTree, key: PRNGKeyArray) -> None:
    """Both are scalars, and the validation loss depends on the model."""
    params = eqx.combine(state.weights, state.responses)
    one, two = (jax.tree.map(lambda leaf: leaf[:1], data) for data in (train, valid))
    shapes = {
        "train_loss(model, batch, hyper, key)": jax.eval_shape(losses.unperturbed, params, state.u, one, key),
        "valid_loss(model, batch)": jax.eval_shape(losses.current, state, two),
    }
    for name, shape in shapes.items():
        if getattr(shape, "shape", None) != () or not jnp.issubdtype(shape.dtype, jnp.floating):
            raise TypeError(f"{name} must return a scalar of floating dtype, the mean over the batch; not {shape}")

    def along(weights, direction, responses, batch):
        def loss(weights):
            return losses.response(eqx.combine(weights, responses), None, batch)

        return jax.jvp(loss, (weights,), (direction,))

    # a derivative along a direction that no symmetry singles out
    keys = iter(jax.random.split(key, len(jax.tree.leaves(state.weights))))
    direction = jax.tree.map(lambda leaf: jax.random.normal(next(keys), leaf.shape, leaf.dtype), state.weights)
    arguments = state.weights, direction, state.responses, two
    value, slope = compiled(jax.jit(along).trace(*arguments), *arguments)(*arguments)
    if not bool(jnp.isfinite(value)):
        raise ValueError(f"valid_loss is {float(value)} before the first step: check the data and the model")
    if not bool(slope != 0):
        raise ValueError(
            "valid_loss does not depend on the model it is given, so it cannot tune anything: compute it from "
            "jax.vmap(model)(x), with the model of its own first argument"
        )
