"""Least squares, binary and Poisson regression with learned penalties, on one split or on folds: see `linear_model`."""

from . import tables
from .families import Binomial, Gaussian, Poisson
from .linear_model import LinearModel


class LinearRegression(LinearModel):
    """`LinearRegression(A, y, A_valid, y_valid)`, or `LinearRegression(A, y, folds=5)`: ridge regression.

        h = 1/2 sum_i w_i ||x^T a_i - y_i||^2 + 1/2 sum_j e^{theta_j} x_j^2,     g the same loss on the rows left out

    Features (n, features), dense or sparse, targets (n,) or (n, targets), float32 or float64 of one dtype. x
    is (features, targets), or (folds, features, targets); theta the log penalties, (), (1, targets), (features, 1) or
    (features, targets). The weights w sum to 1, so scikit-learn's alpha is e^theta times the sum of the rows' weights.

    `folds`, `weights`, `weights_valid`, `penalties` as in `LogisticRegression`; folds given as a number are shuffled.
    `intercept`: not penalised; eliminated, which centres features and targets with each fold's weights. `penalised`
    (features,): False for other columns that are not; they are eliminated too, and neither in x nor in theta nor in
    `penalties`, but in `coefficients(x)`. `offset` (n,) or (n, targets), `offset_valid`: taken from the targets.

    Raises ValueError for shapes, folds and values that do not fit, TypeError for dtypes.
    """

    family = Gaussian()
    __init__ = LinearModel.__init__  # said again for type checkers, which make one of the fields

    @staticmethod
    def _table(name, A, y):
        return tables.measured(name, A, y, several=True)


class BinomialRegression(LinearModel):
    """`BinomialRegression(A, y, A_valid, y_valid)`, or `BinomialRegression(A, y, folds=5)`: shares, or two classes.

        h = sum_i w_i (log(1 + e^{s_i}) - y_i s_i) + 1/2 sum_j e^{theta_j} x_j^2,     s_i = x^T a_i

    Targets (n,) in [0, 1], of the features' dtype; x is (features, 1), or (folds, features, 1). With classes 0 and 1
    it is the model of `LogisticRegression` at a penalty half as large: there the weights of two classes share it. All
    else as in `PoissonRegression`, but that its constants hold everywhere.
    """

    family = Binomial()
    __init__ = LinearModel.__init__  # said again for type checkers, which make one of the fields

    @staticmethod
    def _table(name, A, y):
        A, y = tables.measured(name, A, y)
        if not ((y >= 0) & (y <= 1)).all():
            raise ValueError(f"{name} targets are shares: some of them are not in [0, 1]")
        return A, y


class PoissonRegression(LinearModel):
    """`PoissonRegression(A, y, A_valid, y_valid)`, or `PoissonRegression(A, y, folds=5)`: counts, with a log link.

        h = sum_i w_i (e^{s_i} - y_i s_i) + 1/2 sum_j e^{theta_j} x_j^2 + terms of y alone,      s_i = x^T a_i

    g is half the mean deviance of the rows left out. Features (n, features) and targets (n,), not negative, of one
    dtype. x is (features, 1), or (folds, features, 1); theta the log penalties, () or (features, 1).

    e^s and its derivatives are bounded on a ball alone, and so are this problem's constants: `Bounds.L_upper`, and M_H.
    A certificate is infinite until ||x - xhat|| is known to be small.

    `folds`, `weights`, `weights_valid`, `penalties` as in `LogisticRegression`; folds given as a number are shuffled.
    `offset` (n,), `offset_valid`: added to s, as the logarithm of an exposure. `intercept`: held, by a
    hundred-thousandth of what the data hold of a feature of mean square 1, where it is best without features, at the
    logarithm of the mean count (see `linear_model`). `penalised` (features,): False for other columns that are not;
    they are held likewise, last rows of x in an orthonormal basis, and neither in theta nor in `penalties`, but in
    `coefficients(x)`.

    Raises ValueError for shapes, folds and values that do not fit, TypeError for dtypes.
    """

    family = Poisson()
    __init__ = LinearModel.__init__  # said again for type checkers, which make one of the fields

    @staticmethod
    def _table(name, A, y):
        A, y = tables.measured(name, A, y)
        if (y < 0).any():
            raise ValueError(f"{name} targets are counts: some of them are negative")
        return A, y
