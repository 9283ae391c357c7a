"""A minute of `make attack`: every bound holds against references in 80-bit floats, and a wrong one is found."""

from functools import partial

import numpy as np
import pytest

from bilevel import Nesterov
from experiments.attack import attack_imaging, checks, families, own

FAMILIES = {
    "TV isotropic elastic: float32, LBFGS": 60,
    "FoE reflect: filters scale weights: float32, LBFGS": 30,
    "logistic at mean 100: a penalty a feature: float32, LBFGS": 60,
    "least squares at 1e3, fitted: float64, Nesterov": 60,
    "least squares, J cancels: float64, Nesterov": 60,
    "least squares, L unknown: float32, LBFGS": 60,
    "huber, along its metric: float64, LBFGS": 60,
    "huber in units: float32, LBFGS": 60,
    "quartic: float32, LBFGS": 60,
    "descents, least squares, small g, box": 12,
    "blur, ridge: float32": 12,
    "identity, weak ridge: float64": 12,
    "Fourier, experts: float32": 12,
}
EVERYTHING = families.everything() | attack_imaging.restorations()


# `make attack` has all of them; half of these wait for `make test-full`
FULL = {
    name
    for name in FAMILIES
    if any(part in name for part in ("FoE", "fitted", "L unknown", "in units", "quartic", "ridge", "experts"))
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.full if n in FULL else ()) for n in FAMILIES])
def test_no_certificate_is_violated(name):
    """x, value, corrected value and gradient; no wrong `converged`, no accepted step that raises f."""
    found = checks.attack(EVERYTHING[name], FAMILIES[name])
    wrong = {quantity: told["violations"] for quantity, told in found["quantities"].items() if told["violations"]}
    assert not wrong, found["examples"]  # [[true / bound, quantity, draw], ...]
    assert sum(told["count"] for told in found["quantities"].values()) >= 3 * FAMILIES[name]


def test_a_wrong_constant_is_found():
    """Where M_H's part is the whole bound of the gradient it is attained; half of L_hessian is told from all of it."""
    ratios = {}
    for told in (1.0, 0.5):
        draw = partial(own.draw_cubic, told=told)
        family = checks.Points("cubic", draw, np.float64, Nesterov(), 30, families.start_attained)
        ratios[told] = checks.attack(family, 30)["quantities"]["gradient"]
    assert ratios[1.0]["violations"] == 0 and 0.999 < ratios[1.0]["worst"] <= 1
    assert ratios[0.5]["violations"] == 30 and 1.9 < ratios[0.5]["worst"] <= 2
