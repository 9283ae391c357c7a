"""What a run did, drawn: the value with its interval and the gradient's norm with its bound, against cost."""

from typing import Any

import numpy as np


def plot(history: dict[str, np.ndarray], tol: float, axes: Any = None) -> Any:
    """Draws into two axes of matplotlib's, below each other where they are made here, and returns them."""
    if axes is None:
        try:
            import matplotlib.pyplot as plt
        except ImportError as error:
            raise ImportError("solution.plot() needs matplotlib: pip install 'bilevel[plots]'") from error
        _, axes = plt.subplots(2, 1, sharex=True, layout="constrained")
    if np.size(axes) != 2:
        raise ValueError(f"solution.plot(axes) draws into two axes, not {np.size(axes)}: pass plt.subplots(2)[1]")
    (above, below), cost = np.ravel(axes), history["cost"]
    value, error = history["value"], history["value_error"]
    above.fill_between(cost, value - error, value + error, alpha=0.3, linewidth=0)
    above.plot(cost, value, marker=".")
    above.set_ylabel("value")
    norm, omega = history["gradient_norm"], history["gradient_error"]
    known = np.isfinite(norm)  # the last one is not, where a run ended between two steps
    cost, norm, most = cost[known], norm[known], (norm + omega)[known]
    below.fill_between(cost, norm, np.where(np.isfinite(most), most, norm), alpha=0.3, linewidth=0)
    below.plot(cost, norm, marker=".")
    if np.isfinite(tol) and tol > 0 and np.any(np.isfinite(omega)):  # else it is one on values
        below.axhline(tol, color="grey", linestyle=":")
    if np.any(norm > 0):
        below.set_yscale("log")
    below.set_ylabel("norm of the gradient")
    below.set_xlabel("cost: gradients and products")
    return axes
