"""What was shown, in plain numbers, for the rules that decide."""

from typing import Any, NamedTuple


class Reached(NamedTuple):
    """What was shown of z, in plain numbers, for the rules that decide.

    `norm` is ||P(theta - z) - theta||, `whole` is ||z||; `per_eps` and `per_delta` what omega gains with eps and with
    delta; `floor` the part of eps that is rounding; `tol` the tolerance, nan while it is not set; `condition` is L/mu.
    """

    eps: float
    delta: float
    norm: float
    whole: float
    omega: float
    per_eps: float
    per_delta: float
    floor: float
    condition: float
    tol: float


class Interval(NamedTuple):
    """low <= f(theta) <= high around `value`, |value - f| <= error, from x within eps; `floor`: rounding allows no
    smaller eps. `asked` is what was asked for."""

    low: float
    value: float
    high: float
    error: float
    eps: float
    floor: bool
    asked: Any
