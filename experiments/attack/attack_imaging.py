"""The same attack on `Restoration`: every operator with every regulariser, in 80 bits (restorations.py).

Images 6 x 4, grey, and in colour where a root is over channels; both dtypes by turns. `make attack-imaging`.
"""

from functools import partial

import numpy as np

from bilevel import LBFGS, Nesterov
from experiments._harness import console
from experiments.attack import attack
from experiments.attack.checks import Points
from experiments.attack.restorations import OPERATORS, REGULARISERS, draw_restoration

COUNT = 54
COLOUR = [(operator, kind) for operator in ("identity", "blur, reflected") for kind in ("TV", "isotropic TV")]


def restorations() -> dict[str, Points]:
    """All pairs; both dtypes meet every operator and every regulariser."""
    pairs, found = [(operator, kind, 1) for operator in OPERATORS for kind in REGULARISERS], {}
    for k, (operator, kind, channels) in enumerate(pairs + [(*pair, 2) for pair in COLOUR]):
        dtype, solver = (np.float32, LBFGS()) if k % 2 else (np.float64, Nesterov())
        name = f"{operator}{', colour' * (channels > 1)}, {kind}: {dtype.__name__}"
        draw = partial(draw_restoration, operator=operator, kind=kind, channels=channels)
        found[name] = Points(name, draw, dtype, solver, COUNT)
    return found


solve, report, draw = (partial(part, everything=restorations) for part in (attack.solve, attack.report, attack.draw))


if __name__ == "__main__":
    console.main("attack_imaging", "Image restoration's certificates in 80-bit floats.", solve, report, draw)
