"""What things cost."""

from typing import NamedTuple

from jaxtyping import Array, Int

Count = Int[Array, ""]


class Counts(NamedTuple):
    """Cost by kind. Each gradient of h, each H v, J v and J^T q counts 1."""

    lower_gradients: int = 0
    hessian_products: int = 0
    cross_products: int = 0

    @property
    def cost(self) -> int:
        return sum(self)
