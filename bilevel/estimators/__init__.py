"""Linear models with scikit-learn's interface, whose penalties are learnt on the cross-validated loss.

    from bilevel import estimators
    model = estimators.LogisticRegression(penalties="feature", cv=5).fit(X, y)

`pip install 'bilevel[estimators]'`; `import bilevel` alone imports nothing of scikit-learn. They compute in float64,
whatever the process has set for JAX, on NumPy arrays in and out.
"""

from ._classifier import LogisticRegression as LogisticRegression
from ._lasso import ElasticNet as ElasticNet
from ._lasso import Lasso as Lasso
from ._regressors import PoissonRegressor as PoissonRegressor
from ._regressors import Ridge as Ridge
