"""problems/data.py: the right pixels, the same on every call, and clear words where there are none."""

import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from bilevel.problems import data


@pytest.fixture
def images():
    return np.random.default_rng(5).uniform(size=(7, 12, 10))


def write(path, pixels):
    """Pixels are 8-bit, 16-bit or float; Pillow chooses the mode by dtype and shape."""
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def five(tmp_path):
    """A folder of five grey images 40 x 30, of values 10, 20, ... 50, and two files that are to be passed over."""
    for k in range(1, 6):
        write(tmp_path / f"{k}.png", np.full((40, 30), 10 * k, np.uint8))
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "._1.png").write_text("what macOS leaves beside a file")
    return tmp_path


def kodak_folder(path):
    """Synthetic stand-ins, 3:2 and colour as the real ones: the left sixth black, the rest grey of value k."""
    path.mkdir()
    for k, name in enumerate(data.KODAK, start=1):
        pixels = np.full((32, 48, 3), k, np.uint8)
        pixels[:, :8] = 0
        write(path / name, pixels)
    return path


@pytest.mark.parametrize("dtype", [np.float64, np.float32, jnp.float32])
def test_photographs(dtype):
    pixels, names = data.photographs(48, dtype)
    assert pixels.shape == (9, 48, 48) and pixels.dtype == np.dtype(dtype)
    assert pixels.min() >= 0 and pixels.max() <= 1
    assert len(set(names)) == 9 and list(names) == sorted(names)
    assert (pixels.std(axis=(1, 2)) > 0.1).all()  # nine photographs, none of them blank
    assert len(np.unique(pixels, axis=0)) == 9


def test_photographs_need_no_network_and_no_heavy_import():
    code = (
        "import sys, socket; socket.socket.connect = socket.getaddrinfo = None\n"
        "from bilevel.problems import data; data.photographs(8)\n"
        "assert not {'skimage', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


@pytest.mark.parametrize("module", ["skimage", "sklearn"])
def test_missing_wheel_is_named(monkeypatch, module):
    found = data.find_spec
    monkeypatch.setattr(data, "find_spec", lambda name: None if name == module else found(name))
    with pytest.raises(ImportError, match=rf'{module}.*pip install "bilevel\[images\]"'):
        data.photographs()


def test_missing_pillow_is_named(monkeypatch, five):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r'Pillow.*pip install "bilevel\[images\]"'):
        data.folder(five)


def test_grey_is_luminance(tmp_path):
    write(tmp_path / "red.png", np.tile(np.array([255, 0, 0], np.uint8), (8, 8, 1)))
    write(tmp_path / "green.png", np.tile(np.array([0, 255, 0, 0], np.uint8), (8, 8, 1)))  # transparent
    write(tmp_path / "sixteen.png", np.full((8, 8), 128 * 256 + 7, np.uint16))
    pixels, names = data.folder(tmp_path, 8)
    assert names == ("green.png", "red.png", "sixteen.png")
    np.testing.assert_array_equal(pixels.max(axis=(1, 2)), pixels.min(axis=(1, 2)))
    np.testing.assert_array_equal(pixels[:, 0, 0], np.array([150, 76, 128]) / 255)  # ITU-R 601: 0.587, 0.299


def test_resize_takes_the_centred_square_and_crop_keeps_pixels(tmp_path):
    wide = np.zeros((20, 40), np.uint8)
    wide[:, 10:30] = np.arange(20)[:, None] * 10 + np.arange(20)
    write(tmp_path / "wide.png", wide)
    square = wide[:, 10:30] / 255
    np.testing.assert_array_equal(data.folder(tmp_path, 20).pixels[0], square)
    np.testing.assert_array_equal(data.folder(tmp_path, 10, "crop").pixels[0], square[5:15, 5:15])
    # bilinear, with the triangle widened to the scale: not the plain mean of 2 x 2
    expected = np.asarray(Image.fromarray(wide[:, 10:30]).resize((10, 10), Image.Resampling.BILINEAR)) / 255
    np.testing.assert_array_equal(data.folder(tmp_path, 10, dtype=np.float64).pixels[0], expected)
    assert data.folder(tmp_path, 60).pixels.shape == (1, 60, 60)


def test_orientation_tag_is_obeyed(tmp_path):
    image = Image.fromarray(np.repeat(np.array([0, 255], np.uint8), 8)[None].repeat(16, 0))  # white on the right
    tags = Image.Exif()
    tags[0x0112] = 3  # stored upside down
    image.save(tmp_path / "phone.png", exif=tags)
    pixels = data.folder(tmp_path, 16).pixels[0]
    assert (pixels[:, :8] == 1).all() and (pixels[:, 8:] == 0).all()


def test_kodak_from_the_environment(monkeypatch, tmp_path):
    where = kodak_folder(tmp_path / "kodak")
    monkeypatch.setenv("BILEVEL_DATA", str(tmp_path))
    pixels, names = data.kodak(16)
    assert pixels.shape == (25, 16, 16) and names == data.KODAK and names[24] == "kodim25.png"
    # squeezed, not cropped: the black sixth is still there
    np.testing.assert_array_equal(pixels[:, :, 0], 0)
    np.testing.assert_array_equal(pixels[:, :, -1], np.repeat(np.arange(1, 26)[:, None] / 255, 16, 1))
    monkeypatch.delenv("BILEVEL_DATA")
    np.testing.assert_array_equal(data.kodak(16, folder=where).pixels, pixels)


def test_kodak_missing(monkeypatch, tmp_path):
    monkeypatch.delenv("BILEVEL_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="BILEVEL_DATA is not set"):
        data.kodak()
    where = kodak_folder(tmp_path / "kodak")
    (where / "kodim07.png").unlink()
    monkeypatch.setenv("BILEVEL_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"1 of the 25 are missing in .*kodak: kodim07\.png\. .*BILEVEL_DATA"):
        data.denoising_set("kodak")


def test_folder_errors(tmp_path, five):
    with pytest.raises(NotADirectoryError, match="nowhere is not a folder"):
        data.folder(tmp_path / "nowhere")
    with pytest.raises(NotADirectoryError, match=r"notes\.txt"):
        data.denoising_set(five / "notes.txt")
    with pytest.raises(ValueError, match=r"1\.png has 30 x 40 pixels, too few to crop 32 x 32"):
        data.folder(five, 32, "crop")
    with pytest.raises(ValueError, match="size must be at least 1"):
        data.folder(five, 0)
    with pytest.raises(ValueError, match="'resize' or 'crop'"):
        data.folder(five, 8, "stretch")
    with pytest.raises(ValueError, match="not uint8"):
        data.folder(five, 8, dtype=np.uint8)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"No images in .*empty"):
        data.folder(tmp_path / "empty")


@pytest.mark.parametrize("spoil", ["text", "truncated", "chunk", "empty", "folder", "float"])
def test_unreadable_file_is_named(five, spoil):
    bad = five / "2b.png"
    if spoil == "text":
        bad.write_text("this is no image")
    elif spoil in ("truncated", "chunk"):
        noise = np.random.default_rng(0).integers(0, 256, (400, 400), np.uint8)
        content = bytearray(write(bad, noise).read_bytes())
        if spoil == "truncated":
            del content[len(content) // 2 :]
        else:
            content[36] ^= 1  # the length of the first chunk of pixels: Pillow's SyntaxError
        bad.write_bytes(content)
    elif spoil == "empty":
        bad.touch()
    elif spoil == "folder":
        bad.mkdir()
    else:
        bad = write(five / "2b.tif", np.full((8, 8), 0.5, np.float32))
    with pytest.raises(ValueError, match=rf"Cannot read the image .*{bad.name}: ."):
        data.folder(five, 8)


def test_noise(images):
    noisy = data.add_noise(images, 0.1, seed=3)
    np.testing.assert_array_equal(noisy, data.add_noise(images, 0.1, seed=3))
    assert not np.array_equal(noisy, data.add_noise(images, 0.1, seed=4))
    np.testing.assert_array_equal(data.add_noise(images, 0, seed=3), images)
    many = data.add_noise(np.zeros((20, 96, 96)), 0.1, seed=0)
    # 184 320 draws: standard errors 2.3e-4 of the mean and 1.6e-4 of the deviation
    assert abs(many.mean()) < 1e-3 and abs(many.std() - 0.1) < 1e-3
    assert many.min() < 0  # not clipped


def test_noise_is_one_draw_in_every_dtype(images):
    noisy = data.add_noise(images, 0.1, seed=3)
    single = data.add_noise(jnp.asarray(images, jnp.float32), 0.1, seed=3)
    assert isinstance(single, np.ndarray) and single.dtype == np.float32
    np.testing.assert_allclose(single, noisy, atol=2e-7)


@pytest.mark.parametrize("sigma", [-0.1, np.nan, np.inf])
def test_noise_level_is_checked(images, sigma):
    with pytest.raises(ValueError, match="sigma must be finite and not negative"):
        data.add_noise(images, sigma, seed=0)


def test_integer_images_are_refused():
    with pytest.raises(ValueError, match="not uint8; divide 8-bit images by 255"):
        data.add_noise(np.zeros((2, 4, 4), np.uint8), 0.1, seed=0)
    with pytest.raises(ValueError, match="not uint8; divide 8-bit images by 255"):
        data.denoising_set(np.zeros((2, 4, 4), np.uint8))


def test_denoising_set_is_reproducible(images):
    one, again, other = (data.denoising_set(images, seed=s, held_out=3) for s in (0, 0, 1))
    for a, b in zip((*one.train, *one.held_out), (*again.train, *again.held_out), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(one.train.noisy, other.train.noisy)
    splits = {data.denoising_set(images, seed=s, held_out=3).held_out.names for s in range(10)}
    assert len(splits) > 1
    # the split follows the seed and the number of images, not their size
    assert data.denoising_set(images[:, :4, :4], held_out=3).held_out.names == one.held_out.names


def test_held_out_is_disjoint_and_complete(images):
    whole, nothing = data.denoising_set(images)
    assert nothing.clean.shape == nothing.noisy.shape == (0, 12, 10) and nothing.names == ()
    train, held_out = data.denoising_set(images, held_out=3)
    assert len(train.names) == 4 and len(held_out.names) == 3
    assert sorted(train.names + held_out.names) == list(map(str, range(7)))
    for part in (train, held_out):
        assert part.clean.dtype == part.noisy.dtype == np.float64
        for clean, noisy, name in zip(*part, strict=True):
            np.testing.assert_array_equal(clean, images[int(name)])
            np.testing.assert_array_equal(noisy, whole.noisy[int(name)])  # whatever is held out


def test_held_out_by_name(five):
    train, held_out = data.denoising_set(five, size=8, held_out=["4.png", "2.png"])
    assert train.names == ("1.png", "3.png", "5.png") and held_out.names == ("2.png", "4.png")
    np.testing.assert_array_equal(held_out.clean[:, 0, 0], np.array([20, 40]) / 255)
    assert data.denoising_set(five, size=8, held_out="3.png").held_out.names == ("3.png",)
    with pytest.raises(ValueError, match=r"held_out names \['9.png'\]"):
        data.denoising_set(five, held_out=["1.png", "9.png"])
    with pytest.raises(ValueError, match="names all 5 images"):
        data.denoising_set(five, held_out=[f"{k}.png" for k in range(1, 6)])


def test_sources(images, five, monkeypatch, tmp_path_factory):
    train, held_out = data.denoising_set(held_out=["chelsea"])
    assert train.clean.shape == (8, 96, 96) and held_out.names == ("chelsea",)
    np.testing.assert_array_equal(held_out.clean[0], data.photographs().pixels[2])
    assert data.denoising_set(str(five), size=8, dtype=np.float32).train.noisy.dtype == np.float32
    assert data.denoising_set(data.folder(five, 9)).train.names[0] == "1.png"
    assert data.denoising_set(jnp.asarray(images), dtype=np.float32).train.clean.dtype == np.float32
    data_folder = tmp_path_factory.mktemp("data")
    shutil.move(kodak_folder(five / "kodak"), data_folder)
    monkeypatch.setenv("BILEVEL_DATA", str(data_folder))
    assert data.denoising_set("kodak", size=8, held_out=5).train.clean.shape == (20, 8, 8)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x[:0], "not empty"),
        (lambda x: x[0], r"stack \(n, height, width\).*images\[None\]"),
        (lambda x: x.T[..., :3], r"np\.moveaxis\(images, -1, 0\)"),
        (lambda x: x[:, None], r"images\.reshape\(-1, 12, 10\)"),
        (lambda x: x + 0j, "complex128; pass their magnitude"),
        (lambda x: np.ma.masked_equal(x, x[0, 0, 0]), "masked entries"),
        (lambda x: 255 * x, r"lie in \[0, 1\]"),
        (lambda x: x - 0.5, r"lie in \[0, 1\]"),
        (lambda x: np.where(x > 0.9, np.nan, x), r"lie in \[0, 1\], got nan"),
        (lambda x: np.where(x > 0.9, np.inf, x), r"lie in \[0, 1\].*inf"),
    ],
)
def test_bad_arrays(images, change, words):
    with pytest.raises(ValueError, match=words):
        data.denoising_set(change(images))


def test_bad_requests(images):
    for held_out in (-1, 7):
        with pytest.raises(ValueError, match="leave one of 7 images"):
            data.denoising_set(images, held_out=held_out)
    with pytest.raises(ValueError, match="size is for images read from files"):
        data.denoising_set(images, size=8)
    with pytest.raises(ValueError, match="not int32"):
        data.denoising_set(images, dtype=np.int32)


def test_psnr():
    clean = np.full((3, 4, 5), 0.5)
    off = clean + np.array([0.1, 0.01, 0.0])[:, None, None]
    np.testing.assert_allclose(data.psnr(off, clean), [20, 40, np.inf])
    assert data.psnr(jnp.asarray(off[0]), jnp.asarray(clean[0])).shape == ()
    with pytest.raises(ValueError, match="one shape"):
        data.psnr(off, clean[0])


def test_psnr_of_colour_and_of_other_ranges():
    """Channels last would be read as images three pixels wide, integers and floats to 255 against a peak of 1."""
    clean = np.full((7, 8, 3), 0.5)
    off = clean + np.array([0.1, 0.1, 0.01])
    with pytest.raises(
        ValueError, match=r"\(7, 8, 3\).*x\.reshape\(\*x\.shape\[:-2\], -1\).*np\.moveaxis\(x, -1, -3\)"
    ):
        data.psnr(off, clean)
    with pytest.raises(ValueError, match="Channels last"):
        data.psnr(off[None], clean[None])
    one, each = (
        data.psnr(*map(turn, (off, clean)))
        for turn in (lambda x: x.reshape(*x.shape[:-2], -1), lambda x: np.moveaxis(x, -1, -3))
    )
    np.testing.assert_allclose(one, -10 * np.log10(np.mean((off - clean) ** 2)))
    np.testing.assert_allclose(each, [20, 20, 40])
    grey = clean[..., 0]
    for images, words in (
        ((255 * grey).astype(np.uint8), "not uint8; divide 8-bit images by 255"),
        (255 * grey, "clean reaches 128: divide by 255"),
        (grey + 0j, "not complex128; pass their magnitude"),
        (jnp.asarray(grey, jnp.bfloat16), r"not bfloat16; pass images\.astype\(np\.float32\)"),
    ):
        with pytest.raises(ValueError, match=words):
            data.psnr(images, images)
