"""Hyper-cleaning: which labels are wrong?

    h(x, theta) = 1/n sum_i s(theta_i) l(x^T a_i, y_i) + 1/2 0.01 ||x||^2,    s(t) = 1 / (1 + e^-t)
    f(theta)    = the mean cross-entropy on rows that are known to be right

Of 400 handwritten digits four in ten have a wrong label; 200 others are known to be right. Each of the 400 has a weight
of its own, and those that do harm lose it. After Franceschi et al. 2017, arXiv 1703.01785.
"""

import jax
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

import bilevel
from bilevel import problems

jax.config.update("jax_enable_x64", True)

A, labels = load_digits(return_X_y=True)
A, rng = A / 16, np.random.default_rng(0)
train, clean, test = np.split(rng.permutation(len(A)), [400, 600])
wrong = rng.uniform(size=400) < 0.4
given = np.where(wrong, (labels[train] + rng.integers(1, 10, 400)) % 10, labels[train])
problem = problems.Reweighted(A[train], given, A[clean], labels[clean], penalty=0.01)
solution = bilevel.solve(problem, np.zeros(400), max_steps=15)
weights = np.asarray(jax.nn.sigmoid(solution.theta))


def logistic(chosen):  # the 200 that are known to be right, and some of the others with the labels that they have
    rows, known = np.concatenate([clean, train[chosen]]), np.concatenate([labels[clean], given[chosen]])
    return LogisticRegression(C=10, max_iter=1000).fit(A[rows], known).score(A[test], labels[test])


shares = {
    "all 600": logistic(weights > -1),
    "the 200 that are right": logistic(weights > 1),
    "these, and what has a weight above 1/2": logistic(weights > 0.5),
    "the weighted 400": np.mean(np.argmax(A[test] @ solution.x, axis=1) == labels[test]),
}
for name, share in shares.items():
    print(f"{name:40} {share:.1%} of {len(test)} other digits are classified right")
low = [np.mean(weights[chosen] < 0.5) for chosen in (wrong, ~wrong)]
print(f"weight below 1/2: {low[0]:.0%} of the wrong labels, {low[1]:.0%} of the right ones")

figure = plt.figure(figsize=(10, 3.6), layout="constrained")
left, right = figure.subfigures(1, 2, width_ratios=[1, 1])
axis, bins = left.subplots(), np.linspace(0, 1, 21)
axis.hist([weights[~wrong], weights[wrong]], bins, stacked=True, label=["right", "wrong"], color=["C0", "C3"])
axis.set(xlabel=r"weight $s(\theta_i)$", ylabel="digits")
axis.legend(title="the label is")
for axis, i in zip(right.subplots(2, 6).flat, np.argsort(weights), strict=False):
    axis.imshow(A[train[i]].reshape(8, 8), cmap="gray_r")
    axis.set_title(f"“{given[i]}”", color="C3" if wrong[i] else "C0")
    axis.axis("off")
right.suptitle("the least weights, with the labels given")
plt.show()
