"""What the two losses must be, tried before the first step: else a run would tune something else without a word.

scalars                   of floating dtype, the validation loss finite and a function of the model
means over the batch      loss(batch) = mean of loss(example), where examples have draws of their own
of effective weights      loss(responding model) = loss(the same with its weights as leaves), at e and a response drawn
of every value            the training loss reads each hyperparameter, and moves with it somewhere in its range

Random losses are compared by their means over KEYS keys, within six standard errors of these.
"""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from .._certificate.dependence import reads
from .._processes import everywhere
from ._bind import bind, is_drop, set_offset
from ._effective import effective
from .compiled import compiled
from .train import Losses, Training

KEYS, EXAMPLES, VALUES = 32, 8, 16
REACH = 6.0  # values tried lie this far from the start at most, in u


def check_losses(losses: Losses, state: Training, train: PyTree, valid: PyTree, key: PRNGKeyArray) -> None:
    """Raises ValueError or TypeError that says what to write instead; warns of a value that moves nothing."""
    params = eqx.combine(state.weights, state.responses)
    _scalars(losses, state, params, train, valid, key)
    _reads(losses, state, params, train, key)
    batches = [_some(data, jax.random.fold_in(key, k)) for k, data in enumerate((train, valid))]
    arguments = params, state.u, *batches, key
    traced = jax.jit(lambda *args: _measure(losses, *args)).trace(*arguments)
    found = jax.tree.map(np.asarray, compiled(traced, *arguments)(*arguments))
    if not np.isfinite(found["valid"][0]):
        raise ValueError(f"valid_loss is {found['valid'][0]} before the first step: check the data and the model")
    if not found["slope"] != 0:
        raise ValueError(
            "valid_loss does not depend on the model it is given, so it cannot tune anything: compute it from "
            "jax.vmap(model)(x), with the model of its own first argument"
        )
    bits = min(
        jnp.finfo(leaf.dtype).bits for leaf in jax.tree.leaves(eqx.filter(losses.model(params), eqx.is_inexact_array))
    )
    exact = {16: 0.1, 32: 1e-4, 64: 1e-5}[bits]
    for name, call in (("train", "train_loss(model, batch, hyper, key)"), ("valid", "valid_loss(model, batch)")):
        _effective(call, *found[f"{name} effective"], 10 * exact)
        if not losses.space.shared:
            _mean(call, *found[f"{name} means"], exact)
    for name, column in zip(losses.space, found["values"], strict=True):
        if np.ptp(column) == 0:
            warnings.warn(
                f"train_loss is the same, {column[0]:.6g}, at {VALUES} values of {name!r}: where it stays so, "
                f"{name!r} only wanders",
                stacklevel=4,
            )


def _scalars(losses, state, params, train, valid, key):
    one, two = (jax.tree.map(lambda leaf: leaf[:1], data) for data in (train, valid))
    shapes = {
        "train_loss(model, batch, hyper, key)": jax.eval_shape(losses.unperturbed, params, state.u, one, key),
        "valid_loss(model, batch)": jax.eval_shape(losses.current, state, two),
    }
    for name, shape in shapes.items():
        if getattr(shape, "shape", None) != () or not jnp.issubdtype(shape.dtype, jnp.floating):
            raise TypeError(f"{name} must return a scalar of floating dtype, the mean over the batch; not {shape}")


def _reads(losses, state, params, train, key):
    one, model = jax.tree.map(lambda leaf: leaf[:1], train), losses.model(params)
    used = reads(lambda values: losses.train_loss(bind(model, None, values), one, values, key), losses.values(state.u))[
        0
    ]
    unread = [name for name, read in used.items() if not read]
    if unread:
        off = any(is_drop(node) and node.inference is True for node in jax.tree.leaves(model, is_leaf=is_drop))
        name, mode = unread[0], "equinox.nn.inference_mode(model, value=False)"
        raise ValueError(
            f"train_loss does not read {', '.join(map(repr, unread))}, so nothing can tune it: use hyper[{name!r}], or "
            f"a layer such as stn.Dropout({name!r}), or leave it out of the space. What acts on the steps and not on "
            "the loss, a learning rate or a batch size, cannot be tuned this way"
            + (f". The model is in inference mode, where nothing is dropped: pass {mode}" if off else "")
        )


def _measure(losses, params, u, train, valid, key):
    """All numbers that are looked at, as one program."""
    keys = jax.random.split(key, KEYS + 3)
    # a derivative, a response and an offset along directions that no symmetry singles out
    leaves, structure = jax.tree.flatten(params)
    noise = [
        jax.random.normal(jax.random.fold_in(keys[-1], k), leaf.shape, leaf.dtype) for k, leaf in enumerate(leaves)
    ]
    model, direction = losses.model(params), jax.tree.unflatten(structure, noise)
    moved = losses.model(jax.tree.map(lambda leaf, one: leaf + 0.1 * one, params, direction))
    e = 0.3 * jax.random.normal(keys[-2], u.shape, u.dtype)
    values = losses.values(jnp.maximum(u + 3, 0))  # where a penalty would be seen, which may start at nothing

    def trained(u, batch, key):
        values = losses.values(u)
        return losses.train_loss(bind(model, None, values), batch, values, key)

    def validated(model, batch):
        return losses.valid_loss(eqx.nn.inference_mode(model), batch)

    def singly(loss, batch, *args):
        return jnp.mean(jax.vmap(lambda one: loss(jax.tree.map(lambda leaf: leaf[None], one), *args))(batch))

    bound, still = bind(moved, e, values), set_offset(model, None)
    found = {
        "train effective": [losses.train_loss(one, train, values, keys[0]) for one in (bound, effective(bound))],
        "valid effective": [validated(one, valid) for one in (bind(moved, e), effective(bind(moved, e)))],
        "valid": jnp.stack([validated(still, valid)]),
        "slope": jax.jvp(lambda p: validated(bind(losses.model(p)), valid), (params,), (direction,))[1],
    }
    steps = jnp.linspace(-REACH, REACH, VALUES)
    points = u[None, None] + steps[:, None, None] * jnp.eye(len(u), dtype=u.dtype)[None]
    found["values"] = (
        jax.lax.map(lambda p: trained(p, train, keys[0]), points.reshape(-1, len(u))).reshape(VALUES, -1).T
    )
    if not losses.space.shared:
        whole = jax.lax.map(lambda key: trained(u, train, key), keys[:KEYS])
        single = jax.lax.map(lambda key: singly(lambda one, key: trained(u, one, key), train, key), keys[:KEYS])
        found["train means"] = whole, single
        found["valid means"] = found["valid"], singly(lambda one: validated(still, one), valid)[None]
    return found


def _mean(call: str, whole: np.ndarray, single: np.ndarray, exact: float) -> None:
    """loss(batch) against the mean of its examples' losses."""
    whole, single = (np.asarray(part, float) for part in (whole, single))
    gap, size = abs(whole.mean() - single.mean()), max(abs(whole.mean()), abs(single.mean()))
    random = len(whole) > 1 and np.ptp(whole) > 0
    error = np.hypot(*(part.std(ddof=1) / np.sqrt(len(part)) for part in (whole, single))) if random else 0.0
    if gap > 6 * error + exact * size:
        raise ValueError(
            f"{call} is no mean over examples: on a batch of {EXAMPLES} it is {whole.mean():.6g}, and the mean over "
            f"these one by one {single.mean():.6g}. With draws for each example it is computed one by one, and would "
            'be another loss: write it as a mean over the batch, or give every hyperparameter draws="batch"'
        )


def _effective(call: str, responding: np.ndarray, ordinary: np.ndarray, exact: float) -> None:
    """The loss of a responding model against that of the ordinary model with its weights."""
    if abs(responding - ordinary) > exact * max(abs(responding), abs(ordinary)):
        raise ValueError(
            f"{call} reads the model's leaves, and takes the weights of its response for weights: it is "
            f"{responding:.6g}, and {ordinary:.6g} with the weights that the model has. Compute such "
            "terms from stn.effective(model), or weight decay from stn.squared_norm(model)"
        )


def _some(data: PyTree, key: PRNGKeyArray) -> PyTree:
    """A few examples, by chance: data may be sorted."""
    n = jax.tree.leaves(data)[0].shape[0]
    chosen = jax.random.permutation(key, n)[:EXAMPLES]
    return everywhere(jax.tree.map(lambda leaf: leaf[chosen], data))
