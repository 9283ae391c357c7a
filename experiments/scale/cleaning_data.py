"""Images of which half have a wrong label, what is judged of a cleaning, and a clock that stops while it is judged."""

import time
from typing import NamedTuple

import numpy as np
from scipy.special import expit

from bilevel.problems import labelled

CLASSES = 10


class Images(NamedTuple):
    """Features, standardised by the rows to learn from, and labels; `wrong` (n,): whose label is not the true one."""

    A: np.ndarray
    y: np.ndarray
    wrong: np.ndarray
    A_valid: np.ndarray
    y_valid: np.ndarray
    A_test: np.ndarray
    y_test: np.ndarray


def images(sizes: tuple[int, int, int], packaged: bool, seed: int) -> Images:
    """`sizes`: rows to learn from, clean ones, test images. Of half of the first, drawn by `seed`, the label is one of
    the nine others."""
    if packaged:
        train, valid, test = labelled.split(labelled.digits(), sizes, seed=seed)
    else:
        every, test = labelled.mnist(28)
        train, valid = labelled.split(every, sizes[:2], seed=seed)
        test = labelled.Labelled(test.features[: sizes[2]], test.labels[: sizes[2]])
    mean, spread = train.features.mean(axis=0), train.features.std(axis=0)
    features = [(part.features - mean) / np.where(spread > 0, spread, 1) for part in (train, valid, test)]
    rng = np.random.default_rng(seed)
    wrong = rng.permutation(len(train.labels)) < len(train.labels) // 2
    drawn = (train.labels + rng.integers(1, CLASSES, len(wrong))) % CLASSES
    y = np.where(wrong, drawn, train.labels).astype(np.int32)
    return Images(features[0], y, wrong, features[1], valid.labels, features[2], test.labels)


def judge(data: Images, theta: np.ndarray, w: np.ndarray) -> dict[str, float]:
    """A model w (features, classes) and log odds of the weights (n,): the clean rows' loss, the test error, and of the
    rows that weigh less than 1/2 the share that is wrong, and the share of the wrong ones that they are."""
    theta, w = np.asarray(theta).ravel(), np.asarray(w, np.float64)
    s = data.A_valid @ w
    top = s.max(axis=1)
    losses = top + np.log(np.exp(s - top[:, None]).sum(axis=1)) - s[np.arange(len(s)), data.y_valid]
    found = theta < 0
    right = int(np.sum(found & data.wrong))
    return {
        "valid_loss": float(losses.mean()),
        "test_error": float(np.mean((data.A_test @ w).argmax(axis=1) != data.y_test)),
        "precision": right / max(1, int(found.sum())),
        "recall": right / int(data.wrong.sum()),
    }


def histogram(data: Images, theta: np.ndarray) -> dict[str, list[int]]:
    """How many rows have which weight, in twenty classes from 0 to 1."""
    weights = expit(np.asarray(theta, np.float64).ravel())
    kinds = {"wrong": data.wrong, "right": ~data.wrong}
    return {name: np.histogram(weights[rows], 20, (0, 1))[0].tolist() for name, rows in kinds.items()}


class Clock:
    """Wall-clock and processor seconds of this process since it was made, without those between `stop` and `go`."""

    def __init__(self):
        self._spent = np.zeros(2)
        self.go()

    def go(self) -> None:
        self._since = np.array([time.perf_counter(), time.process_time()])

    def stop(self) -> dict[str, float]:
        self._spent += np.array([time.perf_counter(), time.process_time()]) - self._since
        return {"seconds": float(self._spent[0]), "cpu_seconds": float(self._spent[1])}
