"""Numbers and parts that are handed over, looked at before they fail somewhere inside: TypeError for what is none,
ValueError for what cannot be meant, with what to write instead."""

import math
from typing import Any

import numpy as np


def number(name: str, value: Any) -> float:
    """As a float. Raises TypeError for what is no number, a text that reads like one included."""
    try:
        return float(value + 0)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be a number, not {value!r}") from error


def positive(**values: Any) -> None:
    """Raises ValueError for a number that is not positive and finite, TypeError for what is none; None passes."""
    for name, value in values.items():
        if value is not None and not 0 < number(name, value) < math.inf:
            raise ValueError(f"{name} must be positive and finite, not {value!r}")


def part(name: str, value: Any, kind: type, example: str) -> None:
    """Raises TypeError unless `value` is a `kind`, of which `example` is one."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be a bilevel.{kind.__name__}, such as bilevel.{example}, not {given(value)}")


def given(value: Any) -> str:
    """What was handed over, in words: classes and functions that were to be called are named."""
    if isinstance(value, type) or (callable(value) and hasattr(value, "__name__")):
        return f"{value.__name__} itself: call it"
    return repr(value)


def yes(answer: Any) -> bool:
    """Whether a callback said True: Python's, NumPy's or JAX's, which comparisons of arrays are; not what just counts
    as true, a number or a text."""
    array = getattr(answer, "dtype", None) == np.dtype(bool) and answer.shape == ()
    return (isinstance(answer, bool) or array) and bool(answer)
