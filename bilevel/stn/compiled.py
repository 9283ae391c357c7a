"""Compiled programs, kept for the next call that would compile the same: told by their text, not by who wrote it.

A run's losses are closures, new at every call, so JAX's own cache does not know them again. But two traces with one
jaxpr, the same arrays closed over and arguments of one structure and placement are the same program.
"""

import hashlib
import re
from collections import OrderedDict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._program import quickly, small

KEPT = 8  # programs: an epoch's may take megabytes
_programs: OrderedDict[Any, Any] = OrderedDict()


def compiled(traced: jax.stages.Traced, *arguments: Any) -> jax.stages.Compiled:
    """The executable; `arguments` are those that it was traced for."""
    placed = str([getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(arguments)])
    key = text(traced), traced.in_tree, traced.out_tree, placed, jax.config.jax_enable_x64
    if key not in _programs:
        _programs[key] = traced.lower().compile(quickly() if small(arguments) else None)
        if len(_programs) > KEPT:
            _programs.popitem(last=False)
    _programs.move_to_end(key)
    return _programs[key]


def text(traced: jax.stages.Traced) -> str:
    """A digest of what was traced: the functions with their constants, all in one."""
    digest = hashlib.sha256(re.sub("0x[0-9a-f]+", "", str(traced.jaxpr)).encode())
    for constant in traced.jaxpr.consts:
        key = isinstance(constant, jax.Array) and jnp.issubdtype(constant.dtype, jax.dtypes.prng_key)
        raw = jax.random.key_data(constant) if key else constant
        digest.update(np.ascontiguousarray(np.asarray(raw)).tobytes())
    return digest.hexdigest()
