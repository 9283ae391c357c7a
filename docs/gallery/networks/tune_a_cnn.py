"""Tune a convolutional network while it trains.

    w(u) = argmin over w of the training loss at hyperparameters u;    min over u of the validation loss at w(u)

A model of how the weights respond, w + gates(u - u_now) W', trains beside them (Delta-STN, arXiv 2010.13514), and u
descends through it: a dropout rate, a strength of noise and a weight decay, in one run on 300 noisy digits. Held at the
values that they start with, the same network overfits. Nothing is certified here.
"""

import equinox as eqx
import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from optax.losses import softmax_cross_entropy_with_integer_labels as cross_entropy

from bilevel import stn
from bilevel.problems import data, labelled

one, two, key = jax.random.split(jax.random.key(0), 3)
layers = [eqx.nn.Conv2d(1, 16, 3, stride=2, padding=1, key=one), eqx.nn.Lambda(lambda x: jax.nn.relu(x).ravel())]
network = eqx.nn.Sequential([*layers, stn.Dropout("drop"), eqx.nn.Linear(256, 10, key=two)])


def train_loss(model, batch, hyper, key):
    (images, labels), (noise, drop) = batch, jax.random.split(key)
    images += hyper["noise"] * jax.random.normal(noise, images.shape)
    scores = jax.vmap(lambda x, key: model(x, key=key))(images, jax.random.split(drop, len(images)))
    return cross_entropy(scores, labels).mean() + hyper["decay"] * stn.squared_norm(model)


def valid_loss(model, batch):
    return cross_entropy(jax.vmap(model)(batch[0]), batch[1]).mean()


digits = labelled.digits(np.float32)
digits = digits._replace(features=data.add_noise(digits.features, 0.3, seed=0).reshape(-1, 1, 8, 8))
train, valid, test = labelled.split(digits, (300, 700, 797), seed=0)
space = stn.Space(drop=stn.Rate(0.05), noise=stn.Real(0.05, 0, 1), decay=stn.Positive(1e-5))
adam, options = optax.adam(3e-3), dict(key=key, epochs=80, batch_size=50)
method, converted = stn.delta_stn(adam, hyper=optax.rmsprop(0.1), train_steps=2), stn.convert(network, space, key=key)
tuned = stn.tune(converted, space, train_loss, valid_loss, train, valid, method, **options)
start = stn.Schedule.fixed(drop=0.05, noise=0.05, decay=1e-5)
held = stn.replay(network, start, train_loss, valid_loss, train, valid, adam, **options)

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
for name, run, colour in (("tuned", tuned, "C3"), ("held at the start's values", held, "C0")):
    loss = valid_loss(eqx.nn.inference_mode(run.model), test)
    print(f"{name}: test loss {loss:.3f}, training loss {run.latest['train_loss']:.3f}")
    left.plot(run.history["valid_loss"], color=colour, label=f"{name}: validation")
    left.plot(run.history["train_loss"], ":", color=colour, label="training")
left.set(xlabel="epochs", ylabel="cross-entropy", ylim=(0, 2))
left.legend()
right.semilogy(np.transpose([tuned.history[name] for name in space]), label=list(space))
right.set(xlabel="epochs", ylabel="the hyperparameters, as they are tuned")
right.legend()
plt.show()
