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
    from .foe import FieldsOfExperts as FieldsOfExperts
    from .logistic import LogisticRegression as LogisticRegression
    from .quadratic import Quadratic as Quadratic
    from .tv import TotalVariation as TotalVariation
