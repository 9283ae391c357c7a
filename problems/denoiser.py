"""Denoisers that are learnt, kept in a file, and applied to any image.

    denoised = argmin over x  1/2 ||x - image||^2 + R(x, theta)

with theta learnt for noise of one standard deviation: see `Restoration`, `TV` and `Ridge`.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from bilevel import solve_lower

from ._learning import certified, examples, mini_batches
from ._regularisers.base import AbstractRegulariser
from ._regularisers.ridge import Ridge
from ._regularisers.tv import TV
from ._restoration import Restoration

KINDS = {
    "TV": lambda: TV(),
    "isotropic TV": lambda: TV(isotropic=True),
    "Ridge": lambda: Ridge(),
    "weakly convex Ridge": lambda: Ridge(weak=True),
}
WEIGHTS = Path(__file__).parent / "weights"


class Denoiser(NamedTuple):
    """`Denoiser(regulariser, theta)`, or `Denoiser.fit(clean, sigma)`, `Denoiser.load(path)`, `pretrained(name)`.

    - `regulariser`: a `TV` or a `Ridge`; `theta`: a dict of arrays that fits it.
    - `sigma`: the noise that it was learnt for, in intensities from 0 to 1; None if nobody said.
    - `run`: what is known of the run that made it, a dict of numbers, strings and lists.
    - `colour`: whether it was learnt from colour images, all channels of which it denoises together, with a `TV`.
    """

    regulariser: AbstractRegulariser
    theta: PyTree
    sigma: float | None = None
    run: dict[str, Any] | None = None
    colour: bool = False

    @classmethod
    def fit(
        cls,
        clean: Sequence[np.ndarray] | np.ndarray,
        sigma: float,
        regulariser: AbstractRegulariser = Ridge(),
        *,
        steps: int = 400,
        max_cost: int = 1000,
        seed: int = 0,
    ) -> "Denoiser":
        """Learnt from clean images (height, width), floats in [0, 1] or integers, and noise drawn by `seed`.

        400 patches 64 x 64, `steps` steps of Adam on batches of 16, and the certified default on 64 of the patches
        until `max_cost` is spent; 0 leaves either out. Minutes. `run` has the certified part's history. Raises
        ValueError for images of other shapes, that are not finite or leave [0, 1], and for a sigma that is not positive
        and finite.
        """
        if not 0 < sigma < np.inf:
            raise ValueError(f"sigma is the noise's standard deviation, positive and finite, not {sigma!r}")
        images = [intensities(image, f"clean[{k}]") for k, image in enumerate(clean)]
        for k, image in enumerate(images):
            if image.ndim != 2 or not (image.min() >= 0 and image.max() <= 1):
                raise ValueError(
                    f"clean[{k}] has shape {image.shape} and runs from {image.min():.3g} to {image.max():.3g}: pass "
                    "grey images (height, width) of intensities from 0 to 1"
                )
        if not images:
            raise ValueError("clean holds no images: pass a list of arrays (height, width), one at least")
        given = examples(images, sigma, size=64, count=400, seed=seed)
        theta, run = regulariser.start(dtype=np.float32), {"patches": len(given.clean), "seed": seed}
        if steps:
            *_, last = mini_batches(given, regulariser, theta, steps=steps, seed=seed)
            theta, run = last.theta, run | {"mini_batches": steps, "mini_batch_cost": last.cost}
        if max_cost:
            solution = certified(given, regulariser, theta, count=64, max_cost=max_cost)
            theta, run = solution.theta, run | record(solution)
        return cls(regulariser, theta, sigma, run)

    def denoise(self, image: np.ndarray, channel_axis: int | None = None) -> np.ndarray:
        """The denoised image: floats of its shape, by scikit-image's conventions (`img_as_float`).

        Integers are divided by the largest of their dtype, booleans become 0 and 1, floats stay as they are and should
        run from 0 to 1 plus noise. `channel_axis`: the axis of the channels, each of which is denoised by itself, with
        `colour` all together; None for a grey image (height, width). Computed in float32, for float64 images in float64
        where JAX has it; within 2.5e-3, root mean square, of the minimiser. Raises ValueError for shapes and for values
        that are not finite, TypeError for complex images.
        """
        image = intensities(image, "image")
        if image.ndim != 2 + (channel_axis is not None):
            raise ValueError(
                f"image has shape {image.shape} and channel_axis is {channel_axis}: pass a grey image (height, width), "
                "or one with channels and channel_axis, -1 where they come last"
            )
        if self.colour and channel_axis is None:
            raise ValueError(
                "this denoiser was learnt from colour images: pass one and its channel_axis, or take another"
            )
        dtype = np.float64 if image.dtype == np.float64 and jax.config.jax_enable_x64 else np.float32
        if self.colour:
            stack = np.moveaxis(image, channel_axis, -1)[None]
        else:
            stack = image[None] if channel_axis is None else np.moveaxis(image, channel_axis, 0)
        problem = Restoration(None, np.ascontiguousarray(stack, dtype), self.regulariser)
        theta = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), self.theta)
        x = np.asarray(solve_lower(problem, theta, eps=2.5e-3 * stack.size**0.5).x, image.dtype)
        if channel_axis is None:
            return x[0]
        return np.moveaxis(x[0], -1, channel_axis) if self.colour else np.moveaxis(x, 0, channel_axis)

    def save(self, path: str | os.PathLike) -> None:
        """One .npz of plain arrays. Raises TypeError for a regulariser that is not one of this package's."""
        kinds = [name for name, make in KINDS.items() if make() == self.regulariser]
        if not kinds:
            raise TypeError(f"only denoisers with TV or Ridge are saved, not {self.regulariser!r}: save its theta")
        about = {"regulariser": kinds[0], "sigma": self.sigma, "run": self.run, "colour": self.colour}
        leaves = {f"theta {name}": np.asarray(leaf, np.float32) for name, leaf in self.theta.items()}
        with open(path, "wb") as file:
            np.savez_compressed(file, about=np.array(json.dumps(about)), **leaves)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Denoiser":
        """What `save` wrote; no code is run. Raises FileNotFoundError, and ValueError for another file."""
        with np.load(path, allow_pickle=False) as file:
            if "about" not in file:
                raise ValueError(f"{path} is no denoiser: it holds {sorted(file)}; pass a file that `save` wrote")
            about = json.loads(str(file["about"]))
            theta = {name[6:]: jnp.asarray(file[name]) for name in file if name != "about"}
        return cls(KINDS[about["regulariser"]](), theta, about["sigma"], about["run"], about.get("colour", False))


def pretrained(name: str) -> Denoiser:
    """A denoiser that comes with the package, for noise of 25/255:

    - "tv-25": isotropic total variation; "ridge-25": 48 filters 7 x 7, convex; "weak-25": the same, weakly convex, with
      h 0.1-strongly convex all the same: the best of the three, and the slowest. Grey images, or channel by channel.
    - "tv-colour-25": total variation of colour images, one root for all channels of a pixel.

    The first three were learnt from BSD400 by experiments/imaging/bsd68.py, the last from every other Kodak photograph
    by experiments/imaging/colour.py; the log of the certified run is in `.run`. Raises ValueError for another name.
    """
    names = sorted(path.stem for path in WEIGHTS.glob("*.npz"))
    if name not in names:
        raise ValueError(f"there is no pretrained denoiser {name!r}; there are {', '.join(names)}")
    return Denoiser.load(WEIGHTS / f"{name}.npz")


def record(solution) -> dict[str, Any]:
    """What a certified run says of itself, with few digits."""
    names = ("cost", "seconds", "value", "value_error", "gradient_norm", "gradient_error")
    history = {name: [float(f"{v:.8g}") for v in np.asarray(solution.history[name])] for name in names}
    finite = {name: [v if np.isfinite(v) else None for v in column] for name, column in history.items()}
    return {
        "certified": bool(solution.certified),
        "steps": solution.steps,
        "cost": int(solution.cost),
        "history": finite,
    }


def intensities(image: object, name: str) -> np.ndarray:
    """As scikit-image's `img_as_float`. Raises TypeError and ValueError."""
    image = np.asarray(image)
    if image.dtype.kind not in "fiub":
        raise TypeError(f"{name} is {image.dtype}: pass an image of floats, integers or booleans")
    if image.dtype.kind in "iu":
        return np.maximum(image / np.iinfo(image.dtype).max, -1.0)
    image = image.astype(np.float32 if image.dtype == np.float16 else float if image.dtype == bool else image.dtype)
    if not np.all(np.isfinite(image)):
        raise ValueError(f"{name} holds NaN or infinite values: replace them")
    return image
