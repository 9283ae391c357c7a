"""README.md as a package index shows it, where the files of a checkout have no address. All else is in pyproject.toml.

BILEVEL_SITE is the address at which the site of `make docs` is served: links and pictures then lead there. Without it
nothing is known that they could lead to, so that pictures are left out, and of links the words stay.
"""

import os
import re
from pathlib import Path

from setuptools import setup

SITE = os.environ.get("BILEVEL_SITE", "").rstrip("/")
PLACES = {  # of a file in the checkout, on the site
    r"docs/pages/(.+)\.md": r"\1/",
    r"docs/README\.md": "extending/",
    r"experiments/README\.md": "experiments/",
    r"experiments/figures/(.+)": r"figures/\1",
}


def elsewhere(link):
    """A Markdown link to a file of the checkout, as it stands where there is no checkout."""
    picture, words, file = link.groups()
    if not SITE:
        return "" if picture else words
    (place,) = (re.sub(known, place, file) for known, place in PLACES.items() if re.fullmatch(known, file))
    return f"{picture}[{words}]({SITE}/{place})"


readme = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
setup(
    long_description=re.sub(r"(!?)\[([^\]]*)\]\((?!https?:)([^)\s]+)\)", elsewhere, readme),
    long_description_content_type="text/markdown",
)
