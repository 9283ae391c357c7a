"""Your own table, fitted and predicted.

    min over w, b of  sum over rows (a^T w + b - y)^2 + sum over features alpha_k(j) w_j^2,    alpha by cross-validation

A DataFrame of numbers and categories, in a pipeline of scikit-learn's. The penalties, one for each kind of column, are
learnt on five folds; then all rows are fitted. Yours takes the place of scikit-learn's table of diabetes.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_diabetes
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, SplineTransformer, StandardScaler

from bilevel import estimators

frame, y = load_diabetes(return_X_y=True, as_frame=True, scaled=False)
frame["sex"] = frame["sex"].map({1.0: "a", 2.0: "b"})
frame["decade"] = (frame["age"] // 10).astype(int).astype(str)
print(frame.head(3), "\n")
train, test, y_train, y_test = train_test_split(frame, y, test_size=0.5, random_state=0)

numbers, categories = ["age", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6"], ["sex", "decade"]
columns = make_column_transformer(
    (StandardScaler(), numbers),
    (make_pipeline(SplineTransformer(n_knots=4), StandardScaler()), numbers),
    (OneHotEncoder(handle_unknown="ignore"), categories),
    sparse_threshold=0,
)
names = columns.fit(train).get_feature_names_out()
kinds = [{"standardscaler": "lines", "pipeline": "splines"}.get(name.split("__")[0], "categories") for name in names]
models = {
    "one penalty, RidgeCV": RidgeCV(np.logspace(-3, 3, 30), cv=5),
    "one a kind of column": estimators.Ridge(cv=5, penalties=kinds),
}
figure, axes = plt.subplots(1, 3, figsize=(10, 3.4), layout="constrained")
for axis, (name, ridge) in zip(axes, models.items(), strict=False):
    model = make_pipeline(columns, ridge).fit(train, y_train)
    predicted = model.predict(test)
    error = np.sqrt(np.mean((predicted - y_test) ** 2))
    print(f"{name}: root mean squared error {error:.2f} on {len(test)} other rows, R^2 {model.score(test, y_test):.3f}")
    axis.plot(y_test, predicted, ".", alpha=0.6)
    axis.axline((150, 150), slope=1, color="0.7")
    axis.set(title=f"{name}\nerror {error:.2f}", xlabel="true", ylabel="predicted", xlim=(0, 350), ylim=(0, 350))
found = dict(zip(sorted(set(kinds)), models["one a kind of column"].penalties_, strict=True))
print("penalties:", ", ".join(f"{kind} {penalty:.3g}" for kind, penalty in found.items()))
axes[2].bar(list(found), list(found.values()), color="C3")
axes[2].axhline(models["one penalty, RidgeCV"].alpha_, color="0.4", linestyle=":", label="RidgeCV")
axes[2].set(yscale="log", title="penalties")
axes[2].legend()
plt.show()
