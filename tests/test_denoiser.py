"""Denoisers: learning is certified at its end, any image in, the same shape out, files, and those in the package."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.problems import TV, AbstractRegulariser, Denoiser, Ridge, data, pretrained
from bilevel.problems._learning import Weighed, examples
from bilevel.problems.denoiser import WEIGHTS, intensities

SHAPE = (14, 12)


def image(seed=0, shape=SHAPE):
    clean = np.zeros(shape)
    clean[: shape[0] // 2, shape[1] // 3 :] = 0.8
    return clean, clean + 0.1 * np.random.default_rng(seed).normal(size=shape)


SOME = Denoiser(TV(isotropic=True), TV().start(), 0.1)


def test_fit():
    """Both phases: the second starts where the first ended and certainly decreases f."""
    clean = [image(k, (16, 20))[0] for k in range(2)]
    clean[1] = np.uint8(255 * clean[1])
    fitted = Denoiser.fit(clean, 0.1, TV(), steps=3, max_cost=250)
    run = fitted.run
    assert run["mini_batches"] == 3 and run["certified"] and run["cost"] <= 250 and run["steps"] >= 1
    value, error = run["history"]["value"], run["history"]["value_error"]
    assert value[-1] + error[-1] < value[0] - error[0]
    assert fitted.sigma == 0.1 and set(fitted.theta) == {"weight", "smoothing"}
    same = Denoiser.fit(clean, 0.1, TV(), steps=0, max_cost=0)
    assert same.theta == TV().start(np.float32) and same.run == {"patches": 400, "seed": 0}


@pytest.mark.parametrize(
    ("clean", "sigma", "words"),
    [
        ([image()[0]], 0.0, "positive and finite, not 0.0"),
        ([image()[0]], np.inf, "positive and finite, not inf"),
        ([], 0.1, "holds no images"),
        ([2 * image()[0]], 0.1, "runs from 0 to 1.6"),
        ([np.zeros((4, 4, 3))], 0.1, "pass grey images"),
        ([np.full((4, 4), np.nan)], 0.1, r"clean\[0\] holds NaN"),
    ],
)
def test_what_cannot_be_learnt_from(clean, sigma, words):
    with pytest.raises(ValueError, match=words):
        Denoiser.fit(clean, sigma, TV())


def test_denoise_any_image():
    clean, noisy = image()
    found = SOME.denoise(noisy)
    assert found.shape == SHAPE and found.dtype == np.float64
    assert data.psnr(found, clean) > data.psnr(noisy, clean) + 3
    single = SOME.denoise(noisy.astype(np.float32))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, found, atol=0.01)
    bytes_, words = (np.round(k * noisy.clip(0, 1)).astype(t) for k, t in ((255, np.uint8), (65535, np.uint16)))
    for integers in (bytes_, words):
        np.testing.assert_allclose(SOME.denoise(integers), SOME.denoise(noisy.clip(0, 1)), atol=0.02)
    colour = np.stack([noisy, noisy[::-1], noisy[:, ::-1]])
    first = SOME.denoise(colour, channel_axis=0)
    last = SOME.denoise(np.moveaxis(colour, 0, -1), channel_axis=-1)
    np.testing.assert_array_equal(np.moveaxis(last, -1, 0), first)
    np.testing.assert_allclose(first[0], found, atol=0.01)


def test_images_are_read_as_scikit_image_reads_them():
    skimage = pytest.importorskip("skimage")
    rng = np.random.default_rng(1)
    for dtype in (np.uint8, np.uint16, np.int16, bool, np.float32, np.float64):
        values = (rng.uniform(0, 2, 20) if dtype is bool else rng.uniform(-0.9, 0.9, 20) * 100).astype(dtype)
        mine, theirs = intensities(values, "image"), skimage.img_as_float(values)
        np.testing.assert_allclose(mine, theirs, rtol=1e-12)
        assert mine.dtype == theirs.dtype


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        (np.zeros((4, 4, 3)), ValueError, "channel_axis, -1 where they come last"),
        (np.zeros(4), ValueError, "pass a grey image"),
        (np.full((4, 4), np.inf), ValueError, "NaN or infinite"),
        (np.zeros((4, 4), complex), TypeError, "floats, integers or booleans"),
    ],
)
def test_images_that_are_refused(wrong, error, words):
    with pytest.raises(error, match=words):
        SOME.denoise(wrong)
    small = Denoiser(Ridge(), Ridge().start())
    with pytest.raises(ValueError, match="7 x 7 do not fit into images"):
        small.denoise(np.zeros((5, 9)))


class Mine(TV):
    pass


def test_files(tmp_path):
    path = tmp_path / "denoiser.npz"
    for regulariser in (TV(), TV(isotropic=True), Ridge(), Ridge(weak=True)):
        theta = {name: jnp.asarray(leaf, np.float32) for name, leaf in regulariser.start().items()}
        written = Denoiser(regulariser, theta, 0.1, {"value": [1.0, 0.5]})
        written.save(path)
        read = Denoiser.load(path)
        assert (read.regulariser, read.sigma, read.run) == (regulariser, 0.1, written.run)
        assert jax.tree.all(jax.tree.map(np.array_equal, read.theta, theta))
    with pytest.raises(TypeError, match="only denoisers with TV or Ridge"):
        Denoiser(Mine(), TV().start()).save(path)
    np.savez(path, x=np.zeros(3))
    with pytest.raises(ValueError, match=r"is no denoiser: it holds \['x'\]"):
        Denoiser.load(path)
    with pytest.raises(FileNotFoundError):
        Denoiser.load(tmp_path / "other.npz")


@pytest.mark.parametrize("name", ["tv-25", "ridge-25", pytest.param("weak-25", marks=pytest.mark.full)])
def test_pretrained(name):
    """From 20 dB, by the run that is told."""
    denoiser = pretrained(name)
    assert denoiser.sigma == 25 / 255 and denoiser.run["certified"]
    assert isinstance(denoiser.regulariser, AbstractRegulariser)
    value, error = denoiser.run["history"]["value"], denoiser.run["history"]["value_error"]
    assert value[-1] - error[-1] <= value[0] + error[0] and error[-1] < 1e-5
    clean, noisy = image(shape=(24, 24))
    assert data.psnr(denoiser.denoise(noisy.astype(np.float32)), clean) > data.psnr(noisy, clean) + 5


def test_colour(tmp_path):
    """One root for all channels: what an edge costs does not depend on their order; better than channel by channel
    where they share it; any axis; as a file; and no grey images."""
    denoiser = pretrained("tv-colour-25")
    denoiser.save(tmp_path / "colour.npz")
    denoiser = Denoiser.load(tmp_path / "colour.npz")
    assert denoiser.colour and denoiser.sigma == 25 / 255 and denoiser.run["certified"]
    clean = image(shape=(24, 24))[0][..., None] * np.array([1.0, 0.5, 0.8])
    noisy = data.add_noise(clean, 25 / 255, seed=1).astype(np.float32)
    found = denoiser.denoise(noisy, channel_axis=-1)
    np.testing.assert_allclose(denoiser.denoise(np.moveaxis(noisy, -1, 0), 0), np.moveaxis(found, -1, 0), atol=1e-5)
    np.testing.assert_allclose(denoiser.denoise(noisy[..., ::-1], -1), found[..., ::-1], atol=0.01)
    apart = pretrained("tv-25").denoise(noisy, channel_axis=-1)
    assert np.mean((found - clean) ** 2) < np.mean((apart - clean) ** 2) < np.mean((noisy - clean) ** 2) / 3
    with pytest.raises(ValueError, match="learnt from colour images"):
        denoiser.denoise(noisy[..., 0])


def test_the_weights_are_small():
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) <= 300_000
    with pytest.raises(
        ValueError, match="no pretrained denoiser 'tv-26'; there are ridge-25, tv-25, tv-colour-25, weak-25"
    ):
        pretrained("tv-26")


def test_patches_are_weighed_by_what_mean_psnr_weighs_them_by():
    images = [image(k, (16, 20))[0] for k in range(2)] + [np.full((18, 16), 0.5)]
    given = examples(images, 0.1, size=64, count=5, seed=0)
    assert given.clean.shape == given.noisy.shape == (5, 16, 16)
    np.testing.assert_allclose(given.weights.mean(), 1, rtol=1e-6)
    assert given.weights[2] > 3 * given.weights[0] and given.weights[0] == given.weights[3]
    problem = Weighed(given.of(slice(3), float), TV())
    errors = np.sum((given.noisy - given.clean)[:3].astype(float) ** 2, axis=(1, 2))
    theta = {name: jnp.asarray(leaf, float) for name, leaf in TV().start().items()}
    np.testing.assert_allclose(problem.upper(problem.data, theta), given.weights[:3] @ errors / 6, rtol=1e-6)
    assert problem.constants(theta).L_upper == pytest.approx(given.weights[2] / 3)
