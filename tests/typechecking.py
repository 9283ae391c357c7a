"""The checker that pytest applies to every annotated call: beartype, with an int welcome where a float is (PEP 484).

The leaves of `PyTree[...]` are checked by it too: jaxtyping's own way there builds a checker anew for each leaf of
each call, which took a third of the tests' time.
"""

import jaxtyping._typeguard
from beartype import BeartypeConf, beartype
from beartype.door import is_bearable

CONF = BeartypeConf(is_pep484_tower=True)
check = beartype(conf=CONF)


def _leaf(accepts):
    """jaxtyping asks `accepts(leaf)` for a TypeError; beartype keeps what it builds for a hint."""
    hint = accepts.__annotations__["x"]

    def accepted(x):
        if not is_bearable(x, hint, conf=CONF):
            raise TypeError

    return accepted


jaxtyping._typeguard.typechecked = _leaf
