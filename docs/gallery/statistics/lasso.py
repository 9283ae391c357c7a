"""Lasso: one penalty, and one a group.

    h(w, theta) = 1/2 mean over the training rows of (a^T w + b - y)^2 + sum_j e^theta_j |w_j|
    f(theta)    = 1/2 the mean squared error on the rows left out, the mean over five folds

The progression of diabetes from 10 measurements and 54 of their squares and products. LassoCV tries 100 penalties; the
descent certifies the value of each that it tries, and goes on where no grid can: with a penalty for each group.
"""

import jax
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LassoCV
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

import bilevel
from bilevel import problems

jax.config.update("jax_enable_x64", True)

A, y = load_diabetes(return_X_y=True)
polynomial = PolynomialFeatures(2, include_bias=False).fit(A)
kept = polynomial.powers_[:, 1] < 2  # the square of the sex is the sex again, and a minimiser would not be unique
A = StandardScaler().fit_transform(polynomial.transform(A)[:, kept])
kind = np.sum(polynomial.powers_[kept], axis=1) - 1  # 0: a measurement, 1: a square or product
rows = np.random.default_rng(0).permutation(len(y))
A, y = A[rows[:150]], y[rows[:150]] / np.std(y)
learnt, left_out = folds = problems.k_folds(len(y), 5), ~problems.k_folds(len(y), 5)
grid = LassoCV(
    alphas=100, max_iter=10_000, cv=[(np.flatnonzero(a), np.flatnonzero(b)) for a, b in zip(*folds, strict=True)]
).fit(A, y)

one = problems.Lasso(A, y, folds=learnt, intercept=True)
first = bilevel.solve(one, one.start(10))
group = problems.Lasso(A, y, folds=learnt, intercept=True, penalties=kind)
second = bilevel.solve(group, np.full(2, float(first.theta)))
features = [np.count_nonzero(run.x, axis=1).mean() for run in (first, second)]
print(first.message)
print(f"LassoCV, 100 penalties: {grid.mse_path_.mean(axis=1).min():.4f} at alpha = {grid.alpha_:.4f}")
print(f"one penalty: {2 * first.value:.4f} +- {2 * first.value_error:.0e} at alpha = {np.exp(first.theta):.4f}")
print(f"one a group: {2 * second.value:.4f} +- {2 * second.value_error:.0e} at alpha = {np.exp(second.theta).round(4)}")
print(f"features: {features[0]:.0f} and {features[1]:.0f} of 64, in the mean over the folds")

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
left.semilogx(grid.alphas_, grid.mse_path_, color="0.85")
left.semilogx(grid.alphas_, grid.mse_path_.mean(axis=1), color="0.3", label="LassoCV: mean of the folds")
left.semilogx(np.exp(first.theta), 2 * first.value, "o", color="C3", label="one penalty")
left.axhline(2 * second.value, color="C0", label="one a group")
left.set(xlabel="alpha", ylabel="mean squared error", ylim=(0.3, 1.4))
left.legend()
weights = np.mean(np.abs(second.x[..., 0]), axis=0)
right.bar(range(64), np.mean(np.abs(first.x[..., 0]), axis=0), color="C3", label="one penalty")
right.bar(range(64), -weights, color="C0", label="one a group")
right.set(xlabel="features: 10 measurements, then squares and products", ylabel="mean |weight|, up and down")
right.legend()
plt.show()
