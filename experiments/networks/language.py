"""p(w_t | w_1 ... w_{t-1}) = softmax(W D_o h_t + b),    (h_t, c_t) = LSTM(D_i E[w_{t-1}], D_h h_{t-1}, c_{t-1})

A word-level language model with one LSTM layer, the seven hyperparameters of arXiv 1903.03088 (after arXiv 1708.02182)
in it, by name, and its data:

    input, hidden, output  dropout D, one mask for all words of a window (arXiv 1512.05287)
    embedding              whole words are dropped from E
    connect                DropConnect on the hidden-to-hidden weights
    alpha, beta            + alpha mean (D_o h)^2 + beta mean (h_t - h_{t-1})^2 in the training loss

An example is a window of words and starts from h = c = 0: windows can be shuffled, and each can have hyperparameters
of its own.
"""

import itertools
from collections import Counter
from pydoc_data.topics import topics
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Int32, PRNGKeyArray

from bilevel import stn
from bilevel.problems import text

NAMES = ("input", "hidden", "output", "embedding", "connect", "alpha", "beta")
WEIGHTS = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(2e-3))  # the optimiser of every training


class Windows(NamedTuple):
    """`targets` are the words after `words`, both (n, length), int32."""

    words: Int32[np.ndarray, "n length"]
    targets: Int32[np.ndarray, "n length"]


class Prediction(NamedTuple):
    """Scores of every next word; the state h and what the output dropout left of it, for alpha and beta."""

    logits: Float[Array, "batch length vocabulary"]
    h: Float[Array, "batch length units"]
    dropped: Float[Array, "batch length units"]


class LSTM(eqx.Module):
    """`model(words, key=key)`, words (batch, length). `names`: the hyperparameters it is to have; the others of `NAMES`
    are as if they were zero.

    The LSTM is two linear layers, so that the inputs of all times are one matrix product.
    """

    embedding: eqx.nn.Embedding | stn.EmbeddingDropout
    drop_input: eqx.nn.Identity | stn.Dropout
    input: eqx.nn.Linear
    drop_hidden: eqx.nn.Identity | stn.Dropout
    hidden: eqx.nn.Linear | stn.DropConnect
    drop_output: eqx.nn.Identity | stn.Dropout
    decoder: eqx.nn.Linear

    def __init__(self, vocabulary: int, units: int, names: tuple[str, ...], *, key: PRNGKeyArray):
        a, b, c, d = jax.random.split(key, 4)
        self.embedding = eqx.nn.Embedding(vocabulary, units, key=a)
        self.input = eqx.nn.Linear(units, 4 * units, key=b)
        self.hidden = eqx.nn.Linear(units, 4 * units, use_bias=False, key=c)
        self.decoder = eqx.nn.Linear(units, vocabulary, key=d)
        if "embedding" in names:
            self.embedding = stn.EmbeddingDropout(self.embedding, "embedding")
        if "connect" in names:
            self.hidden = stn.DropConnect(self.hidden, "connect")
        self.drop_input, self.drop_hidden, self.drop_output = (
            stn.Dropout(name, shared=(0,)) if name in names else eqx.nn.Identity()
            for name in ("input", "hidden", "output")
        )

    def __call__(self, words: Int[Array, "batch length"], *, key: PRNGKeyArray) -> Prediction:
        of_hidden, of_windows = jax.random.split(key)
        # one mask for the batch, as a mask for each window would be a matrix for each
        hidden = self.hidden(key=of_hidden) if isinstance(self.hidden, stn.DropConnect) else self.hidden
        keys = jax.random.split(of_windows, len(words))
        h, dropped = jax.vmap(lambda words, key: self._states(hidden, words, key))(words, keys)
        return Prediction(jax.vmap(jax.vmap(self.decoder))(dropped), h, dropped)

    def _states(self, hidden, words, key):
        of_words, of_input, of_state, of_output = jax.random.split(key, 4)
        x = jax.vmap(lambda word: self.embedding(word, key=of_words))(words)
        by_input = jax.vmap(self.input)(self.drop_input(x, key=of_input))
        start = jnp.zeros(x.shape[1:], x.dtype)
        kept = self.drop_hidden(jnp.ones_like(start)[None], key=of_state)[0]  # the mask, over 1 - p

        def step(state, by_input):
            h, c = state
            i, f, g, o = jnp.split(by_input + hidden(kept * h), 4)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        h = jax.lax.scan(step, (start, start), by_input)[1]
        return h, self.drop_output(h, key=of_output)


def convert(model: LSTM, space: stn.Space, *, key: PRNGKeyArray) -> LSTM:
    """With responses in all layers but the decoder, as in the code published with arXiv 1903.03088: it is most of the
    cost, and the states that it decodes respond."""
    return stn.convert(model, space, key=key, where=lambda path, layer: path != ".decoder")


def cross_entropy(logits: Float[Array, "*batch vocabulary"], targets: Int[Array, "*batch"]) -> Float[Array, ""]:
    """-log p of the word that came, averaged; its exponential is the perplexity."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, targets))


def train_loss(model: LSTM, batch: Windows, hyper: dict[str, Array], key: PRNGKeyArray) -> Float[Array, ""]:
    words, targets = batch
    logits, h, dropped = model(words, key=key)
    loss = cross_entropy(logits, targets)
    if "alpha" in hyper:
        loss += hyper["alpha"] * jnp.mean(dropped**2)
    if "beta" in hyper:
        loss += hyper["beta"] * jnp.mean((h[:, 1:] - h[:, :-1]) ** 2)
    return loss


def valid_loss(model: LSTM, batch: Windows) -> Float[Array, ""]:
    words, targets = batch
    return cross_entropy(model(words, key=jax.random.key(0)).logits, targets)  # no use is made of the key


@eqx.filter_jit
def evaluate(model: LSTM, windows: Windows, size: int = 64) -> Float[Array, ""]:
    """`valid_loss` over all windows, `size` of them at a time, in inference."""
    model = eqx.nn.inference_mode(model)
    losses = jax.lax.map(lambda one: valid_loss(model, jax.tree.map(lambda a: a[None], one)), windows, batch_size=size)
    return jnp.mean(losses)


def windows(tokens: Int32[np.ndarray, " n"], length: int) -> Windows:
    """Windows of consecutive words, none in two of them; what does not fill the last one is left out."""
    cut = text.batches(tokens, 1, length)
    return Windows(cut.inputs[:, 0], cut.targets[:, 0])


def packaged(tokens: int, vocabulary: int) -> text.Corpus:
    """The topics of Python's own `help()`, which ship with it, in place of `text.corpus`: eight topics of ten to train,
    one to validate, one to test, cut after `tokens` words and after a tenth of that."""
    parts = [[word for part in text.sentences(topics[name]) for word in part] for name in sorted(topics)]
    kinds = [part for k, part in enumerate(parts) if k % 10 > 1], parts[::10], parts[1::10]
    streams = [
        list(itertools.chain(*kind))[:most]
        for kind, most in zip(kinds, (tokens, tokens // 10, tokens // 10), strict=True)
    ]
    words = (text.UNKNOWN, *(word for word, _ in Counter(streams[0]).most_common(vocabulary - 1)))
    ids = {word: k for k, word in enumerate(words)}
    return text.Corpus(*(np.array([ids.get(word, 0) for word in stream], np.int32) for stream in streams), words)
