"""Multinomial logistic regression with learned penalties, on one split or on folds.

    h(W, theta) = 1/n sum_i CE(W^T a_i, y_i) + 1/2 sum_j e^{theta_j} W_j^2,     CE(s, y) = log sum_c e^{s_c} - s_y
    g(W) = 1/n_v sum_i CE(W^T v_i, y_i) on validation data

theta's shape says what is shared: () one penalty in all, (1, classes) one per class, (features, 1) one per feature,
(features, classes) one per weight. Section 4.4 of arXiv 2308.10098.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from . import tables
from .families import Multinomial
from .inputs import classes
from .linear_model import LinearModel
from .sparse import Features


class LogisticRegression(LinearModel):
    """`LogisticRegression(A, y, A_valid, y_valid)`, or `LogisticRegression(A, y, folds=5)`.

    Features (n, features), float32 or float64 of one dtype; SciPy-sparse and BCOO features stay sparse (`sparse_rows`).
    Labels (n,), integers 0 ... classes - 1, each of which occurs in train, and in every fold. With more features than
    rows nothing of size (features, features) is made.
    x is W (features, classes), or (folds, features, classes); theta the log penalties, (), (1, classes), (features, 1)
    or (features, classes).

    - `folds`: in place of validation data, which rows each fold leaves out; a number of folds (stratified, shuffled by
      a fixed seed), or what `folds.masks` takes. h is then the sum over the folds, g the mean of their losses on the
      rows left out.
    - `weights` (n,), `weights_valid` (n_valid,): of rows, not negative; with folds `weights` are those of the rows left
      out, too.
    - `offset` (n, classes), `offset_valid`: added to the scores.
    - `intercept`: one more row of W, not learnt to be penalised: it is held, by a hundred-thousandth of what the data
      hold of a feature of mean square 1, where it is best without features (see `linear_model`). Without it, append a
      column of ones, penalised like any feature.
    - `penalised` (features,): False for other columns that are not. They are held like the intercept, last rows of x
      in an orthonormal basis, and neither in theta nor in `penalties`, but in `coefficients(x)`.
    - `penalties`: groups of features (features,), numbered from 0, theta (groups,); or a matrix B (features, d), theta
      (d,), the features' log penalties being B theta.

    Raises ValueError for shapes, labels, folds and values that do not fit, TypeError for dtypes.
    """

    family = Multinomial()
    __init__ = LinearModel.__init__  # said again for type checkers, which make one of the fields
    _table = staticmethod(tables.labelled)
    _columns = staticmethod(classes)

    @property
    def classes(self) -> int:
        return self.shape[-1]

    @property
    def A(self) -> Features:
        return self.train.A

    @property
    def y(self) -> Int[Array, " n"]:
        return self.train.y

    @property
    def A_valid(self) -> Features:
        return self.valid.A

    @property
    def y_valid(self) -> Int[Array, " n_valid"]:
        return self.valid.y

    def accuracy(
        self, x: Float[Array, "features classes"], features: Float[Array, "m features"], labels: Int[Array, "..."]
    ) -> Float[Array, ""]:
        """The share of `labels` that the largest score names, in [0, 1]. ValueError unless there is one a row."""
        if jnp.shape(labels) != jnp.shape(features)[:1]:
            raise ValueError(f"features {jnp.shape(features)} and labels {jnp.shape(labels)}: pass one label a row")
        best = jnp.argmax(features @ x, axis=1)
        return jnp.mean(best == jnp.asarray(labels, best.dtype), dtype=x.dtype)
