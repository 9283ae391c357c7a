"""Bilevel problems of the field, with proven constants."""

from .foe import FieldsOfExperts as FieldsOfExperts
from .logistic import LogisticRegression as LogisticRegression
from .quadratic import Quadratic as Quadratic
from .tv import TotalVariation as TotalVariation
