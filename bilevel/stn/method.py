"""How to self-tune: STN, Delta-STN and what lies between them; `train.py` has the equations."""

from typing import Any

import equinox as eqx
import optax
from jaxtyping import Array, Float

from .space import Space


class Method(eqx.Module):
    """How to self-tune; `stn` and `delta_stn` make the published methods, other combinations are their ablations.

    **Attributes**

    - `centred`: the gates see e, the offset from u; otherwise u - u_0 + e, the offset from the start.
    - `decoupled`: w on the unperturbed loss, phi on the perturbed one.
    - `linearised`: (b) to first order; needs both of these.
    - `antithetic`: (b) under e and -e, on half of the batch, where what is linear in e, noise alone, cancels; needs
      `decoupled`.
    - `learn_scales`: rho is tuned too; otherwise it stays, and validation steps are not perturbed.
    - `entropy`: tau, in units of the validation loss.
    - `train_steps`, `valid_steps`: how many of each in turn. `warmup`: epochs before the first (c).
    - `weights`, `responses`, `hyper`, `scales`: the optimisers of w, phi, u and rho.
    """

    centred: bool = eqx.field(static=True)
    decoupled: bool = eqx.field(static=True)
    linearised: bool = eqx.field(static=True)
    antithetic: bool = eqx.field(static=True)
    learn_scales: bool = eqx.field(static=True)
    entropy: float = eqx.field(static=True)
    train_steps: int = eqx.field(static=True)
    valid_steps: int = eqx.field(static=True)
    warmup: int = eqx.field(static=True)
    weights: Any = eqx.field(static=True)
    responses: Any = eqx.field(static=True)
    hyper: Any = eqx.field(static=True)
    scales: Any = eqx.field(static=True)

    def __check_init__(self):
        if self.linearised and not (self.centred and self.decoupled):
            raise ValueError("linearised=True is the expansion at the current value: it needs centred and decoupled")
        if self.antithetic and not self.decoupled:
            raise ValueError(
                "antithetic=True fits the response on half of each batch: w needs a loss of its own, decoupled"
            )
        if not (self.train_steps >= 1 and self.valid_steps >= 1 and self.warmup >= 0 and self.entropy >= 0):
            raise ValueError(
                "train_steps and valid_steps must be at least 1, warmup and entropy at least 0; they are "
                f"{self.train_steps}, {self.valid_steps}, {self.warmup}, {self.entropy}"
            )
        for name in ("weights", "responses", "hyper", "scales"):
            if not isinstance(getattr(self, name), optax.GradientTransformation):
                raise TypeError(f"{name} must be an optax optimiser such as optax.adam(1e-3)")

    def offset(self, space: Space, u: Float[Array, "H"]) -> Float[Array, "H"] | None:
        """What the gates see at u, (H,), where nothing is drawn, for `stn.bind` and `stn.materialise`: None, which
        is as zero, if `centred`, else u - u_0.

        The origin matters: the logarithm of a decay of 1e-5 is -11.5, and gates that see it learn what w should, 11.5
        times as fast, so that u follows the course of training.
        """
        return None if self.centred else u - space.start(u.dtype)[0]


def delta_stn(
    weights: Any = optax.adam(1e-3),
    *,
    responses: Any = None,
    hyper: Any = optax.rmsprop(1e-2),
    scales: Any = optax.rmsprop(1e-2),
    learn_scales: bool = True,
    entropy: float = 1e-3,
    train_steps: int = 5,
    valid_steps: int = 1,
    warmup: int = 1,
    centred: bool = True,
    decoupled: bool = True,
    linearised: bool = True,
    antithetic: bool | None = None,
) -> Method:
    """Delta-STN (arXiv 2010.13514), in pairs of draws. Arguments as in `Method`; left out, `responses` is `weights`
    with a state of its own, and `antithetic` is what `decoupled` is."""
    antithetic = decoupled if antithetic is None else antithetic
    responses = weights if responses is None else responses
    return Method(
        centred, decoupled, linearised, antithetic, learn_scales, entropy, train_steps, valid_steps, warmup,
        weights, responses, hyper, scales,
    )  # fmt: skip


def stn(
    weights: Any = optax.adam(1e-3),
    *,
    responses: Any = None,
    hyper: Any = optax.rmsprop(1e-2),
    scales: Any = optax.rmsprop(1e-2),
    learn_scales: bool = True,
    entropy: float = 1e-3,
    train_steps: int = 2,
    valid_steps: int = 1,
    warmup: int = 1,
) -> Method:
    """The Self-Tuning Network as first published (arXiv 1903.03088). Arguments as in `Method` and `delta_stn`."""
    return delta_stn(
        weights, responses=responses, hyper=hyper, scales=scales, learn_scales=learn_scales, entropy=entropy,
        train_steps=train_steps, valid_steps=valid_steps, warmup=warmup,
        centred=False, decoupled=False, linearised=False, antithetic=False,
    )  # fmt: skip
