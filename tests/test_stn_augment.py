"""bilevel/stn/augment.py: nothing at strength 0, what each keeps, where pixels go, one image or a batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.stn import augment
from bilevel.stn.augment import Holes, Motion

# every augmentation with a strength that acts
STRENGTHS = {
    "brightness": 0.5,
    "contrast": 0.5,
    "saturation": 0.5,
    "hue": 0.3,
    "affine": Motion(0.1, 0.2, 0.3, 0.2),
    "cutout": Holes(3, 2),
    "noise": 0.2,
    "speckle": 0.2,
}


# compiled once for all tests
ACT = {name: jax.jit(getattr(augment, name)) for name in STRENGTHS}
MANY = {name: jax.jit(jax.vmap(getattr(augment, name), (None, None, 0))) for name in STRENGTHS}
warp = jax.jit(augment.warp)
turn_hue = jax.jit(augment.turn_hue)


def picture(*shape, dtype=np.float64):
    return jnp.asarray(np.random.default_rng(0).uniform(size=shape), dtype)


def times(strength, factor):
    return jax.tree.map(lambda s: jnp.asarray(s * factor), strength)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", STRENGTHS)
def test_strength_0_is_the_identity_to_the_last_bit(name, dtype):
    act = ACT[name]
    image = picture(3, 11, 16, dtype=dtype)
    same = act(image, times(STRENGTHS[name], 0), jax.random.key(1))
    assert same.dtype == dtype
    np.testing.assert_array_equal(same, image)
    other = act(image, times(STRENGTHS[name], 1), jax.random.key(1))
    assert other.dtype == dtype and other.shape == (3, 11, 16)
    assert float(jnp.max(jnp.abs(other - image))) > 0.01


@pytest.mark.parametrize("name", STRENGTHS)
def test_one_draw_per_key(name):
    image, strength = picture(3, 11, 16), times(STRENGTHS[name], 1)
    a, b, c = (ACT[name](image, strength, jax.random.key(k)) for k in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


@pytest.mark.parametrize("name", STRENGTHS)
def test_vmapped_equals_looped(name):
    images, keys = picture(5, 3, 11, 16), jax.random.split(jax.random.key(0), 5)
    factors = jnp.arange(5) if name == "cutout" else jnp.linspace(0, 1, 5)
    strengths = times(STRENGTHS[name], factors)
    together = jax.jit(jax.vmap(getattr(augment, name)))(images, strengths, keys)
    for k in range(5):
        alone = ACT[name](images[k], jax.tree.map(lambda s, k=k: s[k], strengths), keys[k])
        np.testing.assert_allclose(together[k], alone, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(together[0], images[0])


@pytest.mark.parametrize("name", STRENGTHS)
def test_derivatives_are_finite(name):
    """In the image and in the strength, at 0 too; a network below may ask for them although nothing here does."""
    image, key = picture(3, 11, 16), jax.random.key(3)
    gradient = jax.jit(jax.grad(lambda image, s: jnp.sum(jnp.sin(getattr(augment, name)(image, s, key))), (0, 1)))
    for factor in (0.0, 1.0):
        for leaf in jax.tree.leaves(gradient(image, times(STRENGTHS[name], factor))):
            assert jnp.all(jnp.isfinite(leaf))


def draws(name, image, strength, n):
    """(n, channels, height, width), NumPy's: independent draws on one image."""
    strength = jax.tree.map(jnp.asarray, strength)
    return np.asarray(MANY[name](image, strength, jax.random.split(jax.random.key(7), n)))


def test_noise_has_its_mean_and_variance():
    image, n = picture(3, 4, 5), 4000
    many = draws("noise", image, 0.3, n) - np.asarray(image)
    # five standard errors: sigma / sqrt(n) of the mean, sigma / sqrt(2 n) of the deviation, 1 / sqrt(n) of correlations
    assert np.abs(many.mean(0)).max() < 5 * 0.3 / n**0.5
    assert np.abs(many.std(0) - 0.3).max() < 5 * 0.3 / (2 * n) ** 0.5
    correlations = np.corrcoef(many.reshape(n, -1), rowvar=False)
    assert np.abs(correlations - np.eye(60)).max() < 5 / n**0.5  # each pixel has its own


def test_speckle_is_noise_times_the_image():
    """Mean and variance of the one therefore follow from the other's: s x is the deviation."""
    image, key = picture(3, 11, 16), jax.random.key(0)
    added, multiplied = (ACT[name](image, jnp.asarray(0.2), key) - image for name in ("noise", "speckle"))
    np.testing.assert_allclose(multiplied, added * image, atol=1e-15)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_jitters_are_uniform_about_the_image(name):
    """s U times a fixed direction, U uniform on [-1, 1]: mean 0, variance s^2 / 3, ends reached and not passed."""
    image, n, s = picture(3, 4, 5), 4000, 0.6
    moved = (draws(name, image, s, n) - np.asarray(image)).reshape(n, -1)
    direction = moved[0] / np.linalg.norm(moved[0])
    size = moved @ direction
    np.testing.assert_allclose(moved, size[:, None] * direction, atol=1e-12)
    x = np.asarray(image)
    luma = np.tensordot([0.299, 0.587, 0.114], x, 1)
    expected = {"brightness": x, "contrast": x - x.mean(), "saturation": x - luma}[name].reshape(-1)
    np.testing.assert_allclose(abs(expected @ direction), np.linalg.norm(expected))
    u = size / (s * np.linalg.norm(expected))
    assert abs(u.mean()) < 5 / (3 * n) ** 0.5 and abs(u.var() - 1 / 3) < 5 * (4 / 45 / n) ** 0.5
    assert 0.998 < u.max() <= 1 and -1 <= u.min() < -0.998


@pytest.mark.parametrize("channels", [1, 3])
def test_contrast_keeps_the_mean(channels):
    image = picture(channels, 11, 16)
    many = draws("contrast", image, 0.9, 50)
    np.testing.assert_allclose(many.mean((1, 2, 3)), image.mean(), rtol=1e-14)
    flat = jnp.full((channels, 4, 4), 0.25)
    np.testing.assert_array_equal(ACT["contrast"](flat, 0.9, jax.random.key(0)), flat)


def test_saturation_keeps_the_luma():
    image, weights = picture(3, 11, 16), np.array([0.299, 0.587, 0.114])
    for changed in draws("saturation", image, 0.9, 10):
        np.testing.assert_allclose(np.tensordot(weights, changed, 1), np.tensordot(weights, image, 1), rtol=1e-13)
    grey = jnp.broadcast_to(picture(1, 4, 4), (3, 4, 4))
    np.testing.assert_allclose(ACT["saturation"](grey, 0.9, jax.random.key(0)), grey, rtol=1e-15)


def test_hue_turns_about_the_grey_axis():
    image = picture(3, 11, 16)
    red, green, blue = image
    np.testing.assert_array_equal(turn_hue(image, 0.0), image)
    np.testing.assert_allclose(turn_hue(image, 1.0), image, atol=1e-14)
    np.testing.assert_allclose(turn_hue(image, 1 / 3), jnp.stack([blue, red, green]), atol=1e-14)
    np.testing.assert_allclose(turn_hue(turn_hue(image, 0.2), 0.15), turn_hue(image, 0.35))
    for changed in draws("hue", image, 0.5, 10):
        np.testing.assert_allclose(changed.mean(0), image.mean(0), rtol=1e-13)
        np.testing.assert_allclose(np.linalg.norm(changed, axis=0), np.linalg.norm(image, axis=0), rtol=1e-13)
    grey = jnp.broadcast_to(picture(1, 4, 4), (3, 4, 4))
    np.testing.assert_allclose(turn_hue(grey, 0.4), grey, rtol=1e-14)


def test_hue_reaches_its_ends():
    """The angle between the colours before and after, in turns: uniform on [0, s]."""
    red, n = jnp.asarray([1.0, 0.0, 0.0]).reshape(3, 1, 1), 2000
    along = (draws("hue", red, 0.2, n)[:, 0, 0, 0] - 1 / 3) / (2 / 3)  # cosine: what is left in red's own direction
    turned = np.arccos(np.minimum(along, 1)) / (2 * np.pi)
    assert 0.199 < turned.max() <= 0.2 + 1e-12 and abs(turned.mean() - 0.1) < 5 * 0.2 / (12 * n) ** 0.5


STILL = dict(rotation=0.0, shift=jnp.zeros(2), scale=0.0, shear=0.0)


@pytest.mark.parametrize("shift", [(0, 0), (2, -3), (-1, 4), (6, 0), (0, -9)])
@pytest.mark.parametrize("shape", [(9, 12), (8, 11)])
def test_whole_pixels_are_moved_exactly(shape, shift):
    delta = np.zeros((1, *shape))
    delta[0, 4, 5] = 0.7
    expected = np.zeros_like(delta)
    row, column = 4 + shift[0], 5 + shift[1]
    if 0 <= row < shape[0] and 0 <= column < shape[1]:
        expected[0, row, column] = 0.7
    moved = warp(jnp.asarray(delta), **STILL | {"shift": jnp.asarray(shift, float)})
    np.testing.assert_array_equal(moved, expected)


def test_half_a_pixel_is_the_mean_of_two():
    image = picture(1, 6, 7)
    moved = warp(image, **STILL | {"shift": jnp.asarray([0.5, 0.0])})
    np.testing.assert_allclose(moved[:, 1:], (image[:, 1:] + image[:, :-1]) / 2, rtol=1e-14)
    np.testing.assert_allclose(moved[:, 0], image[:, 0] / 2, rtol=1e-14)  # what comes from outside is 0


def test_turns_are_anticlockwise():
    image = picture(3, 9, 9)
    for quarters in range(5):
        turned = warp(image, **STILL | {"rotation": quarters / 4})
        np.testing.assert_allclose(turned, np.rot90(image, quarters, axes=(1, 2)), atol=1e-12)


def test_scale_magnifies_and_shear_leans_to_the_right():
    ramp = jnp.broadcast_to(jnp.arange(9.0)[None, None, :] - 4, (1, 9, 9))  # x measured from the centre
    twice = warp(ramp, **STILL | {"scale": np.log(2)})
    np.testing.assert_allclose(twice, ramp / 2, atol=1e-14)
    half = warp(ramp, **STILL | {"scale": -np.log(2)})
    np.testing.assert_allclose(half[:, 2:7, 2:7], 2 * ramp[:, 2:7, 2:7], atol=1e-14)
    assert jnp.all(half[:, :2] == 0) and jnp.all(half[:, :, 7:] == 0)  # nothing comes from outside
    upright = jnp.zeros((1, 9, 9)).at[0, :, 4].set(1.0)
    leaning = warp(upright, **STILL | {"shear": 1.0})
    np.testing.assert_array_equal(leaning[0], np.eye(9)[::-1])


def test_warp_is_the_map_it_documents():
    """On linear ramps, where interpolation is exact, against the inverse of R H S as a matrix."""
    x = jnp.broadcast_to(jnp.arange(-20.0, 21)[None, :], (41, 41))
    y = jnp.broadcast_to(jnp.arange(-20.0, 21)[:, None], (41, 41))
    turns, shift, scale, shear = 0.07, np.array([1.3, -0.4]), 0.2, 0.3
    moved = warp(jnp.stack([x, y]), turns, jnp.asarray(shift), scale, shear)
    cos, sin = np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)
    matrix = np.array([[cos, sin], [-sin, cos]]) @ np.array([[1, -shear], [0, 1]]) * np.exp(scale)  # on (x, y down)
    grid = np.stack([x - shift[1], y - shift[0]]).reshape(2, -1)
    expected = (np.linalg.inv(matrix) @ grid).reshape(2, 41, 41)
    np.testing.assert_allclose(moved[:, 14:27, 14:27], expected[:, 14:27, 14:27], atol=1e-12)


def test_affine_draws_what_it_says():
    """Translations of a delta, by their centre of mass: uniform to s height and s width; absent motions are none."""
    delta = jnp.zeros((1, 41, 21)).at[0, 20, 10].set(1.0)
    moved = draws("affine", delta, Motion(translation=jnp.asarray(0.2)), 2000)[:, 0]
    np.testing.assert_allclose(moved.sum((1, 2)), 1, rtol=1e-12)
    down, right = moved.sum(2) @ np.arange(41) - 20, moved.sum(1) @ np.arange(21) - 10
    assert 8.1 < np.abs(down).max() <= 8.2 and 4.1 < np.abs(right).max() <= 4.2
    assert abs(down.mean()) < 5 * 8.2 / 6000**0.5 and abs(np.corrcoef(down, right)[0, 1]) < 5 / 2000**0.5
    # one strength does not redraw another's number
    a = ACT["affine"](delta, Motion(translation=0.2), jax.random.key(0))
    b = ACT["affine"](delta, Motion(translation=0.2, rotation=0.0, shear=0.0), jax.random.key(0))
    np.testing.assert_array_equal(a, b)


def holes(length, number):
    """Where 4000 draws on an image of 12 x 15 pixels have their holes: (4000, 12, 15)."""
    image = 0.5 + np.asarray(picture(2, 12, 15)) / 2
    out = draws("cutout", jnp.asarray(image), Holes(length, number), 4000)
    gone = out == 0
    np.testing.assert_array_equal(out, np.where(gone, 0, image))
    np.testing.assert_array_equal(gone[:, 0], gone[:, 1])  # in every channel
    return gone[:, 0]


@pytest.mark.parametrize("length", [1, 2, 3, 6])
def test_one_hole_is_one_square(length):
    gone = holes(length, 1)
    sides = gone.any(2), gone.any(1)
    np.testing.assert_array_equal(gone, sides[0][:, :, None] & sides[1][:, None, :])  # a rectangle
    for side in sides:
        size, begins = side.sum(1), side[:, 0] + (np.diff(side.astype(int)) == 1).sum(1)
        assert (begins == 1).all() and (size >= 1).all() and (size <= length).all()
        clear = ~side[:, 0] & ~side[:, -1]  # of the edges
        assert clear.any() and (size[clear] == length).all()
    # the share of the centres for which no part is lost, to five standard errors
    p = (13 - length) * (16 - length) / (12 * 15)
    assert abs((gone.sum((1, 2)) == length**2).mean() - p) <= 5 * (p * (1 - p) / 4000) ** 0.5


def test_every_pixel_is_as_likely_a_centre():
    """Pearson's statistic of 180 counts has mean 179 and variance 358."""
    counts, expected = holes(1, 1).sum(0), 4000 / 180
    assert ((counts - expected) ** 2 / expected).sum() < 179 + 5 * 358**0.5


def test_holes_are_nested_and_bounded():
    before = np.zeros((4000, 12, 15), bool)
    for number in range(5):
        gone = holes(3, number)
        more = gone.sum((1, 2)) - before.sum((1, 2))
        assert (gone >= before).all() and more.max() == (9 if number else 0)
        before = gone
    assert before.sum((1, 2)).max() == 4 * 9


def test_the_ends_of_the_integers():
    """0 of either is nothing; 2 max(height, width) - 1 = 29 is everything whatever the centre, 28 is not always."""
    assert not holes(0, 3).any() and not holes(5, 0).any() and not holes(0, 0).any()
    assert holes(29, 1).all() and not holes(28, 1).all()


def test_fractions_are_rounded_down():
    np.testing.assert_array_equal(holes(4.9, 3.9), holes(4, 3))


@pytest.mark.parametrize("name", ["saturation", "hue"])
def test_colours_need_three_channels(name):
    for shape in ((1, 8, 8), (8, 8, 3), (4, 8, 8)):
        with pytest.raises(ValueError, match=f"{name} needs the 3 channels red, green, blue.*leave {name} out"):
            getattr(augment, name)(jnp.ones(shape), 0.1, jax.random.key(0))


@pytest.mark.parametrize("name", sorted(set(STRENGTHS) - {"saturation", "hue"}))
def test_grey_images_have_one_channel(name):
    shape = jax.eval_shape(ACT[name], picture(1, 11, 16), times(STRENGTHS[name], 1), jax.random.key(0))
    assert shape.shape == (1, 11, 16) and shape.dtype == np.float64


@pytest.mark.parametrize("name", STRENGTHS)
def test_what_is_no_image_is_refused(name):
    act, strength, key = getattr(augment, name), STRENGTHS[name], jax.random.key(0)
    for shape in ((8, 8), (2, 3, 8, 8)):
        with pytest.raises(ValueError, match=r"not \(channels, height, width\): map a batch with jax.vmap"):
            act(jnp.ones(shape), strength, key)
    with pytest.raises(TypeError, match=r"the image is uint8: pass floats in \[0, 1\]"):
        act(jnp.ones((3, 8, 8), np.uint8), strength, key)
