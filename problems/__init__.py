"""Bilevel problems of the field, with proven constants. Imported as `bilevel.problems`.

In a checkout this folder can be imported as `problems` too, for one release more: that name then stands for
`bilevel.problems`, and those of its modules for theirs, so that no class is there twice.
"""

if __name__ == "problems":
    import importlib
    import pkgutil
    import sys
    import warnings

    warnings.warn("write `from bilevel import problems` for `import problems`", DeprecationWarning, stacklevel=2)
    for module in pkgutil.iter_modules(__path__):
        sys.modules[f"problems.{module.name}"] = importlib.import_module(f"bilevel.problems.{module.name}")
    sys.modules["problems"] = importlib.import_module("bilevel.problems")
else:
    from ._operators.base import AbstractOperator as AbstractOperator
    from ._operators.blur import Blur as Blur
    from ._operators.identity import Identity as Identity
    from ._operators.linear import Linear as Linear
    from ._operators.mask import Mask as Mask
    from ._operators.masked_fourier import MaskedFourier as MaskedFourier
    from ._operators.matrix import Matrix as Matrix
    from ._operators.radon import radon_matrix as radon_matrix
    from ._operators.super_resolution import SuperResolution as SuperResolution
    from ._regularisers.base import AbstractRegulariser as AbstractRegulariser
    from ._regularisers.experts import Experts as Experts
    from ._regularisers.ridge import Ridge as Ridge
    from ._regularisers.tv import TV as TV
    from ._restoration import Restoration as Restoration
    from .boxed import Boxed as Boxed
    from .denoiser import Denoiser as Denoiser
    from .denoiser import pretrained as pretrained
    from .exact_tv import ExactTotalVariation as ExactTotalVariation
    from .foe import FieldsOfExperts as FieldsOfExperts
    from .folds import k_folds as k_folds
    from .group_lasso import GroupLasso as GroupLasso
    from .j_invariant import JInvariant as JInvariant
    from .lasso import ElasticNet as ElasticNet
    from .lasso import Lasso as Lasso
    from .logistic import LogisticRegression as LogisticRegression
    from .quadratic import Quadratic as Quadratic
    from .regression import BinomialRegression as BinomialRegression
    from .regression import LinearRegression as LinearRegression
    from .regression import PoissonRegression as PoissonRegression
    from .reweighted import AbstractReweighted as AbstractReweighted
    from .reweighted import Reweighted as Reweighted
    from .sure import Sure as Sure
    from .tv import TotalVariation as TotalVariation
