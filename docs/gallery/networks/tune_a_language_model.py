"""Tune a language model while it trains.

    p(c_t | c_{t-8} ... c_{t-1}) = softmax(W drop(relu(V [E c_{t-8}, ..., E c_{t-1}] + a)) + b)

The next letter of Python's own help pages from the last eight, after Bengio et al. 2003. A dropout rate and a weight
decay are tuned while it trains by Delta-STN (arXiv 2010.13514), beside a run that is held at their first values.
Nothing is certified here. With a recurrent network, and seven hyperparameters: experiments/networks/lstm.py.
"""

from pydoc_data.topics import topics

import equinox as eqx
import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from optax.losses import softmax_cross_entropy_with_integer_labels as cross_entropy

from bilevel import stn


class Model(eqx.Module):
    layers: tuple

    def __call__(self, window, *, key=None):
        embedding, hidden, drop, out = self.layers
        return out(drop(jax.nn.relu(hidden(jax.vmap(embedding)(window).ravel())), key=key))


def train_loss(model, batch, hyper, key):
    scores = jax.vmap(lambda x, key: model(x, key=key))(batch[0], jax.random.split(key, len(batch[0])))
    return cross_entropy(scores, batch[1]).mean() + hyper["decay"] * stn.squared_norm(model)


def valid_loss(model, batch):
    return cross_entropy(jax.vmap(model)(batch[0]), batch[1]).mean()


text = " ".join(topics[name] for name in sorted(topics)).lower()[:12_000]
letters, tokens = np.unique(list(text), return_inverse=True)
windows = [np.lib.stride_tricks.sliding_window_view(part.astype(np.int32), 9) for part in np.split(tokens, 3)]
train, valid, test = ((window[:, :8], window[:, 8]) for window in windows)
one, two, three, key = jax.random.split(jax.random.key(0), 4)
layers = eqx.nn.Embedding(len(letters), 16, key=one), eqx.nn.Linear(128, 128, key=two), stn.Dropout("drop")
network = Model((*layers, eqx.nn.Linear(128, len(letters), key=three)))
space = stn.Space(drop=stn.Rate(0.05), decay=stn.Positive(1e-6))
adam, options = optax.adam(3e-3), dict(key=key, epochs=20, batch_size=100)
method, converted = stn.delta_stn(adam, hyper=optax.rmsprop(0.1), train_steps=2), stn.convert(network, space, key=key)
tuned = stn.tune(converted, space, train_loss, valid_loss, train, valid, method, **options)
start = stn.Schedule.fixed(drop=0.05, decay=1e-6)
held = stn.replay(network, start, train_loss, valid_loss, train, valid, adam, **options)

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
for name, run, colour in (("tuned", tuned, "C3"), ("held at the first values", held, "C0")):
    print(f"{name}: perplexity {np.exp(valid_loss(eqx.nn.inference_mode(run.model), test)):.2f} on other pages")
    left.plot(run.history["valid_loss"], color=colour, label=name)
left.legend(title="validation loss, against epochs")
right.semilogy(np.transpose([tuned.history[name] for name in space]), label=list(space))
right.legend(title="as they are tuned, against epochs")
plt.show()
