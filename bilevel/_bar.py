"""The progress bar: on a terminal or in a notebook, of the first process, and never elsewhere."""

import sys
import warnings
from typing import Any

from ._processes import first


def shown(progress: bool) -> bool:
    """Whether somebody is there to look at a bar."""
    terminal = getattr(sys.stderr, "isatty", None)
    return progress and (_notebook() or (terminal is not None and bool(terminal()))) and first()


def bar(progress: bool, **options: Any) -> Any:
    """A bar of tqdm's; of Jupyter's widgets where these are installed. One that is not shown does nothing."""
    if not shown(progress):
        from tqdm import tqdm

        return tqdm(disable=True, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without widgets tqdm says so, and is a line of text
        from tqdm.auto import tqdm  # looks where it is, so not before there is something to show
    return tqdm(disable=False, **options)


def _notebook() -> bool:
    """Whether this is the kernel of a notebook, whose stderr is no terminal."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return "IPKernelApp" in getattr(shell, "config", {})
