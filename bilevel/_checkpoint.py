"""Save and load a run: one .npz of plain arrays, written beside the old file and moved over it in one step.

No pickle. A fingerprint of the data and the method goes with the arrays, since a run resumed under others would not be
the run that was interrupted; and the versions, since under others the bits may differ. Where several processes share a
run the first one writes, and all read.
"""

import dataclasses
import functools
import hashlib
import os
import re
import types
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jaxlib
import numpy as np
from jaxtyping import PyTree

from ._processes import anywhere, first, laid_out, shared, told_by_first, whole


def versions() -> str:
    return f"jax {jax.__version__}, jaxlib {jaxlib.__version__}, numpy {np.__version__}"


def goes_on(path: str | os.PathLike | None, resume: bool | str, overwrite: bool, together: bool = False) -> bool:
    """Whether a run goes on from the file at `path`; of processes that run it `together` the first one looks whether
    it is there. Raises ValueError where that cannot be, and where a file would be overwritten unasked; before anything
    is computed."""
    if not isinstance(resume, bool) and resume != "auto":
        raise ValueError(f'resume must be False, True or "auto", not {resume!r}')
    if resume and overwrite:
        raise ValueError(
            f"resume={resume!r} goes on from the checkpoint and overwrite=True starts afresh: pass one of them"
        )
    if path is None:
        if resume or overwrite:
            option = f"resume={resume!r}" if resume else "overwrite=True"
            raise ValueError(f"{option} needs a file to go on from, or to write: pass checkpoint=path")
        return False
    path = Path(path)
    if not path.resolve().parent.is_dir():
        raise ValueError(f"checkpoint={os.fspath(path)!r} lies in a folder that does not exist: make it first")
    if path.is_dir():
        raise ValueError(f"no checkpoint at {path}, which is a folder: name a file in it")
    exists = told_by_first(path.exists(), together)
    if resume is True and not exists:
        raise ValueError(f'no checkpoint at {path}: check the path, or pass resume="auto", which then starts afresh')
    if exists and not resume and not overwrite:
        raise ValueError(
            f"there is a checkpoint at {path}, and it would be overwritten: pass resume=True to go on from it "
            '(resume="auto" in a script that is to start, too, where there is none), overwrite=True to start afresh, '
            "or another path"
        )
    return bool(resume) and exists


def fingerprint(problem: PyTree, method: Any, options: dict[str, Any]) -> dict[str, str]:
    """What a resumed run must share with the interrupted one, by name: data, method, options; and the versions."""
    return {
        "data, theta0, x0 or bounds": _digest((problem, options)),
        "method": f"{method!r} {_digest(method)[:12]}",  # an array prints as its shape
        "versions": versions(),
    }


def _digest(tree: PyTree) -> str:
    """Of structure and numbers. A walk of our own: JAX prints a structure in other words in other versions."""
    digest, above = hashlib.sha256(), set()

    def walk(node, name=""):
        if isinstance(node, np.ndarray | np.generic | jax.Array | int | float | complex):
            array = whole(node)
            digest.update(f"{name}: {array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))  # no copy of what may be large
            return
        kind, inside = _inside(node)
        if id(node) in above:  # a function that calls itself
            inside = {}
        # what has no print of its own prints with its address, which differs in every process
        digest.update(re.sub("0x[0-9a-f]+", "", f"{name}: {kind} of {len(inside)}").encode())
        above.add(id(node))
        for key, child in inside.items():
            walk(child, f"{name}/{key}")
        above.discard(id(node))

    walk(tree)
    return digest.hexdigest()


def _inside(node: Any) -> tuple[str, dict[Any, Any]]:
    """What a node is and what it is made of; a function, as an optimiser's is, of the constants that it holds."""
    kind = type(node).__qualname__
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        return kind, {field.name: getattr(node, field.name, None) for field in dataclasses.fields(node)}
    if isinstance(node, dict):
        return kind, {repr(key): node[key] for key in sorted(node, key=repr)}
    if isinstance(node, set | frozenset):
        return kind, dict(enumerate(sorted(map(repr, node))))
    if isinstance(node, types.FunctionType):
        held = {k: cell.cell_contents for k, cell in enumerate(node.__closure__ or ()) if cell != types.CellType()}
        numbers = [value for value in node.__code__.co_consts if isinstance(value, int | float | complex)]
        return node.__qualname__, held | {"defaults": (node.__defaults__, node.__kwdefaults__), "numbers": numbers}
    if isinstance(node, functools.partial) and not isinstance(node, jax.tree_util.Partial):
        return kind, {"function": node.func, "args": node.args, "keywords": node.keywords}
    if callable(node) and hasattr(node, "__wrapped__"):
        return kind, {"wrapped": node.__wrapped__}
    level = jax.tree_util.default_registry.flatten_one_level(node)
    if level is None:
        return repr(node), {}
    return f"{kind} {'' if isinstance(node, list | tuple) else repr(level[1])}", dict(enumerate(level[0]))


def save(path: str | os.PathLike, state: PyTree, history: dict[str, list], prints: dict[str, str]) -> None:
    """Write the checkpoint atomically. Raises OSError (a full disk, say) with the old file untouched; where processes
    share the state, in all of them."""
    path, together = Path(path), shared(state)
    arrays = {f"state/{i}": whole(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
    arrays |= {f"history/{name}": np.asarray(values) for name, values in history.items()}
    arrays |= {f"fingerprint/{name}": np.asarray(text) for name, text in prints.items()}
    failed = None
    if first() or not together:
        try:
            _write(path, arrays)
        except OSError as error:
            failed = error
    if anywhere(failed is not None, together):
        raise failed or OSError("the first process could not write the checkpoint")


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    unfinished = path.with_name(path.name + ".tmp")
    try:
        with open(unfinished, "wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def load(
    path: str | os.PathLike, like: PyTree, prints: dict[str, str], fragile: Collection[str] = ()
) -> tuple[PyTree, dict[str, list]]:
    """The state, in the structure of `like`, and the history. Raises ValueError if the file is damaged, or from a run
    with other data or another method. Other versions are a warning; `fragile` prints cannot be compared across them."""
    path = Path(path)
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # zipfile, zlib and NumPy raise a dozen kinds, and all of them mean the same
        raise ValueError(f"the checkpoint {path} is damaged ({error}): start afresh with overwrite=True") from error
    _compare(path, {name: str(arrays.get(f"fingerprint/{name}", "nothing")) for name in prints}, prints, fragile)
    leaves, structure = jax.tree.flatten(like)
    if f"state/{len(leaves)}" in arrays:
        raise ValueError(f"the checkpoint {path} was written by another version: start afresh with overwrite=True")
    try:
        restored = [_like(leaf, arrays[f"state/{i}"]) for i, leaf in enumerate(leaves)]
    except KeyError as error:
        raise ValueError(f"the checkpoint {path} is damaged: it lacks {error}") from error
    if any(np.shape(a) != np.shape(b) for a, b in zip(leaves, restored, strict=True)):
        raise ValueError(f"the checkpoint {path} was written by another version: start afresh with overwrite=True")
    history = {k.removeprefix("history/"): list(v) for k, v in arrays.items() if k.startswith("history/")}
    return jax.tree.unflatten(structure, restored), history


def _compare(path: Path, saved: dict[str, str], prints: dict[str, str], fragile: Collection[str]) -> None:
    """Raises ValueError for prints of another run, and warns of other versions."""
    differ = [name for name in prints if saved[name] != prints[name]]
    other = "versions" in differ
    for name in differ:
        if name != "versions" and not (other and name in fragile):
            raise ValueError(
                f"the checkpoint {path} belongs to another run, its {name} differ: it has {saved[name]}, this run "
                f"{prints[name]}. Resume with what the run was started with, or start afresh with overwrite=True"
            )
    if other:
        unsure = "".join(f", nor can it be told whether its {name} is this run's" for name in differ if name in fragile)
        warnings.warn(
            f"the checkpoint {path} was written with {saved['versions']}, and this is {prints['versions']}: the run "
            f"goes on, but its last digits may not be those that it would have had{unsure}",
            UserWarning,
            stacklevel=4,
        )


def _like(leaf: Any, array: np.ndarray) -> Any:
    """The saved array as what it was: a JAX array laid out like `leaf`, a NumPy array, or a Python number."""
    if isinstance(leaf, np.ndarray):
        return array
    if eqx.is_array(leaf):
        return laid_out(array, leaf)
    return array.item()
