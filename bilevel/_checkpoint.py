"""Save and load a run: one .npz of plain arrays, written beside the old file and moved over it in one step.

No pickle. A fingerprint of the data, the method and the versions goes with the arrays, since a run resumed under
others would not be the run that was interrupted.
"""

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jaxlib
import numpy as np
from jaxtyping import PyTree


def fingerprint(problem: PyTree, method: Any, options: dict[str, Any]) -> dict[str, str]:
    """What a resumed run must share with the interrupted one, by name: data, method, options, versions."""
    return {
        "data, theta0, x0 or bounds": _digest((problem, options)),
        "method": f"{method!r} {_digest(method)[:12]}",  # an array prints as its shape
        "versions": f"jax {jax.__version__}, jaxlib {jaxlib.__version__}, numpy {np.__version__}",
    }


def _digest(tree: PyTree) -> str:
    """Of structure and numbers; functions print with their address, which differs in every process."""
    digest = hashlib.sha256(re.sub("0x[0-9a-f]+", "", str(jax.tree.structure(tree))).encode())
    for leaf in jax.tree.leaves(tree):
        if callable(leaf):
            digest.update(re.sub("0x[0-9a-f]+", "", repr(leaf)).encode())
            continue
        array = np.asarray(leaf)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def save(path: str | os.PathLike, state: PyTree, history: dict[str, list], prints: dict[str, str]) -> None:
    """Write the checkpoint atomically. Raises OSError (a full disk, say) with the old file untouched."""
    path = Path(path)
    arrays = {f"state/{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
    arrays |= {f"history/{name}": np.asarray(values) for name, values in history.items()}
    arrays |= {f"fingerprint/{name}": np.asarray(text) for name, text in prints.items()}
    unfinished = path.with_name(path.name + ".tmp")
    try:
        with open(unfinished, "wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def load(path: str | os.PathLike, like: PyTree, prints: dict[str, str]) -> tuple[PyTree, dict[str, list]]:
    """The state, in the structure of `like`, and the history. Raises ValueError if the file is missing, damaged, or
    from a run with other data, method or versions."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no checkpoint at {path}: check the path, or start afresh without resume=True")
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # zipfile, zlib and NumPy raise a dozen kinds, and all of them mean the same
        raise ValueError(f"the checkpoint {path} is damaged ({error}): start afresh without resume=True") from error
    for name, text in prints.items():
        saved = str(arrays.get(f"fingerprint/{name}", "nothing"))
        if saved != text:
            raise ValueError(
                f"the checkpoint {path} belongs to another run, its {name} differ: it has {saved}, this run {text}. "
                "Resume with what the run was started with, or start afresh without resume=True"
            )
    leaves, structure = jax.tree.flatten(like)
    try:
        restored = [_like(leaf, arrays[f"state/{i}"]) for i, leaf in enumerate(leaves)]
    except KeyError as error:
        raise ValueError(f"the checkpoint {path} is damaged: it lacks {error}") from error
    if any(np.shape(a) != np.shape(b) for a, b in zip(leaves, restored, strict=True)):
        raise ValueError(f"the checkpoint {path} was written by another version: start afresh without resume=True")
    history = {k.removeprefix("history/"): list(v) for k, v in arrays.items() if k.startswith("history/")}
    return jax.tree.unflatten(structure, restored), history


def _like(leaf: Any, array: np.ndarray) -> Any:
    """The saved array as what it was: a JAX array laid out like `leaf`, or a Python number."""
    if eqx.is_array(leaf):
        return jax.device_put(array, leaf.sharding)
    return array.item()
