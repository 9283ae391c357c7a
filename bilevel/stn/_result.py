"""What a run of `tune` or `replay` found."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import PyTree

from .epochs import OUTCOMES
from .running import best_epoch
from .schedule import Schedule


class Run(eqx.Module):
    """What a run found.

    **Attributes**

    - `model`: an ordinary Equinox model with the weights at the last hyperparameters, dropping at their rates: call
      `equinox.nn.inference_mode(run.model)` to predict.
    - `network`: the same with its response, for `stn.bind`.
    - `values`: the last hyperparameters by name, of a `Vector` as an array.
    - `schedule`: theirs at each training step, a `Schedule`.
    - `best`, `best_epoch`: the model, as `model`, of the epoch with the least validation loss, and its place in the
      history.
    - `history`: 1-D NumPy arrays with one entry for each epoch, as it ended: `train_loss` (its mean), `valid_loss`, the
      metrics, `seconds` (running time so far), each hyperparameter by name ("decay[0]" of a `Vector`) and "scale of
      ..." its sigma.
    - `outcome`, `completed`, `message`: a member of `OUTCOMES`, whether all epochs were run, and it in words.
    - `compile_seconds`: tracing and compiling.
    - `state`: what a next step would start from.
    """

    model: PyTree
    network: PyTree
    values: dict[str, float | int | np.ndarray]
    schedule: Schedule | None
    history: dict[str, np.ndarray]
    best: PyTree
    best_epoch: int
    outcome: OUTCOMES
    compile_seconds: float
    state: Any

    @property
    def completed(self) -> bool:
        return bool(self.outcome == OUTCOMES.completed)

    @property
    def latest(self) -> dict[str, Any]:
        """The last entries of the history."""
        return {column: entries[-1] for column, entries in self.history.items()}

    @property
    def message(self) -> str:
        return str(OUTCOMES[self.outcome])


def result(
    at: Callable[[Any], tuple[PyTree, PyTree, dict[str, Any]]], state: Any, best: Any, history: dict[str, list],
    outcome: OUTCOMES, seconds: float,
) -> Run:  # fmt: skip
    """`at(state)`: the ordinary model, the one that responds, and the values."""
    model, network, values = at(state)
    steps = {column.removeprefix("step/"): np.asarray(history[column]) for column in history if column[:5] == "step/"}
    return Run(
        model, network,
        {name: value.item() if value.ndim == 0 else np.asarray(value) for name, value in values.items()},
        Schedule(steps) if steps else None,
        {column: np.asarray(history[column]) for column in history if column[:5] != "step/"},
        model if best is state else at(best)[0], best_epoch(history), outcome, seconds, state,
    )  # fmt: skip
