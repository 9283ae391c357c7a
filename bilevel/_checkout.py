"""`bilevel.problems` lies inside the package where that is installed, and beside it in a checkout: it is found there
too, by this, whatever put the checkout on the path."""

import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

HERE = Path(__file__).parent


class Beside:
    """Asked first: an installation that is on the path, too, may be of another checkout."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [str(HERE.parent)]) if name == "bilevel.problems" else None


if not (HERE / "problems").is_dir():
    sys.meta_path.insert(0, Beside)
