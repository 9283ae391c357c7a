"""What is checked before the first step. All of it raises ValueError or TypeError and says what to write instead."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ._bind import is_response, responds
from .loaders import batches, comes_in_batches
from .running import OWN
from .space import Space


def check_data(train: Any, valid: Any, batch_size: int) -> tuple[Any, Any, tuple[PyTree, PyTree]]:
    """Both, as JAX arrays if they are arrays, and some examples of each. Raises ValueError unless each is a pytree of
    arrays with one leading axis, the examples, or each comes in batches."""
    kinds = comes_in_batches(train), comes_in_batches(valid)
    if any(kinds):
        if not all(kinds):
            raise ValueError(
                "train and valid must both be arrays or both come in batches: wrap one, as in lambda: [valid]"
            )
        return train, valid, (next(batches("train", train)), next(batches("valid", valid)))
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
    return checked[0], checked[1], (checked[0], checked[1])


def check_names(hyperparameters: Iterable[str], metrics: dict[str, Any]) -> None:
    """Raises ValueError where two columns of the history would have one name."""
    names = set(hyperparameters)
    taken = OWN & (names | set(metrics)) or names & set(metrics)
    if taken:
        raise ValueError(f"the history has another column {min(taken)!r}: rename that hyperparameter or metric")


def check_limits(epochs: int, every: int, patience: int | None) -> None:
    """Raises ValueError for what cannot be run."""
    if patience is not None and not patience >= 1:
        raise ValueError(f"patience must be at least 1 epoch, or None to run all; it is {patience}")
    if not epochs >= 1 or not every >= 1:
        raise ValueError(f"epochs and every must be at least 1; they are {epochs} and {every}")


def check_model(model: PyTree, space: Space) -> None:
    """It was converted, for this space."""
    found = list(filter(responds, jax.tree.leaves(model, is_leaf=responds)))
    if not found:
        raise ValueError("this model does not respond to hyperparameters: pass stn.convert(model, space, key=key)")
    gates = (gate for node in found for gate in (node.gates.values() if is_response(node) else [node.gate]))
    sizes = {gate.shape[-1] for gate in gates}
    if sizes != {len(space)}:
        raise ValueError(
            f"the model was converted for {', '.join(map(str, sizes))} hyperparameters, but the space has "
            f"{len(space)}: convert it with the space that you tune"
        )
