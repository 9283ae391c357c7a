"""Ridge regression: one penalty, one a group, one a feature.

    h(w, theta) = 1/2 mean over the training rows of (a^T w + b - y)^2 + 1/2 sum_j e^theta_j w_j^2
    f(theta)    = 1/2 the mean squared error on the rows left out, the mean over five folds

The progression of diabetes from 10 measurements and the squares of 9 of them; 60 people to learn from. One penalty is
RidgeCV's grid search. One a feature, 19 in all, fits the folds too: what it says of its error there is not what others
say.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.linear_model import RidgeCV
from sklearn.preprocessing import StandardScaler

from bilevel import estimators

A, y = load_diabetes(return_X_y=True)
squares = np.delete(A, 1, axis=1) ** 2  # of all but the sex
A, order = StandardScaler().fit_transform(np.hstack([A, squares])), np.repeat([1, 2], [10, 9])
rows = np.random.default_rng(0).permutation(len(y))
train, test = rows[:60], rows[60:]
models = {
    "RidgeCV": RidgeCV(np.logspace(-2, 4, 60), cv=5, scoring="neg_mean_squared_error"),
    "one a group": estimators.Ridge(cv=5, penalties=order, tol=1e-3),
    "one a feature": estimators.Ridge(cv=5, penalties="feature", tol=1e-3),
}
errors = {}
print(f"{'':16}{'RMSE on the folds':>20}{'on 382 others':>20}")
for name, model in models.items():
    model.fit(A[train], y[train])
    folds = -model.best_score_ if name == "RidgeCV" else 2 * model.solution_.value
    errors[name] = [folds**0.5, np.mean((model.predict(A[test]) - y[test]) ** 2) ** 0.5]
    print(f"{name:16}{errors[name][0]:20.2f}{errors[name][1]:20.2f}")

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained", width_ratios=[2, 3])
for k, where in enumerate(("folds", "others")):
    left.bar(np.arange(3) + 0.4 * k, [error[k] for error in errors.values()], width=0.38, label=where)
left.set(xticks=np.arange(3) + 0.2, xticklabels=list(errors), ylim=(45, None), ylabel="root mean squared error")
left.legend()
groups = models["one a group"].penalties_[order - 1]
right.semilogy(np.sort(models["one a feature"].penalties_[order == 1]), "o", color="C0", label="10 measurements")
rest = np.sort(models["one a feature"].penalties_[order == 2])
right.semilogy(10 + np.arange(9), rest, "o", color="C1", label="their squares")
right.semilogy(groups, "-", color="0.4", drawstyle="steps-mid", label="one a group")
right.axhline(models["RidgeCV"].alpha_, color="0.4", linestyle=":", label="RidgeCV")
right.set(xlabel="features, sorted", ylabel="penalty")
right.legend(fontsize=8)
plt.show()
