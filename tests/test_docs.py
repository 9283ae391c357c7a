"""The pages of docs/ run as they stand, with few steps; they are short, and use what is public."""

import ast
import runpy
from pathlib import Path

import matplotlib
import pytest

import bilevel

matplotlib.use("Agg")  # draws without a screen
import matplotlib.pyplot as plt

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = sorted(DOCS.glob("extend_*.py"))
GALLERY = sorted((DOCS / "gallery").glob("*/*.py"))
OTHERS = {"dataclasses", "collections", "os", "pathlib", "pydoc_data", "signal"}  # and what is installed beside it
PACKAGES = {"estimators", "stn"}  # of bilevel, imported by themselves
OTHERS |= {"equinox", "jax", "matplotlib", "numpy", "optax", "skimage", "sklearn"}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_runs_with_few_steps_and_prints_its_table(path, monkeypatch, capsys):
    """In this process, and without a figure written."""
    monkeypatch.setenv("SMOKE", "1")
    before = {figure: figure.read_bytes() for figure in DOCS.rglob("*.png")}
    runpy.run_path(str(path))
    plt.close("all")
    _, *rows = capsys.readouterr().out.splitlines()
    assert len(rows) >= 2 and all(any(word.isdigit() for word in row.split()) for row in rows)
    assert before == {figure: figure.read_bytes() for figure in DOCS.rglob("*.png")}


def private(source):
    """What a page takes from the package that is not public, or from elsewhere than the packages above."""
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "bilevel":
            names = [f"bilevel.{node.attr}"]
        for name in names:
            top, *inside = name.split(".")
            known = top in OTHERS or (
                top == "bilevel" and (not inside or hasattr(bilevel, inside[0]) or inside[0] in PACKAGES)
            )
            if not known or any(part.startswith("_") for part in inside):
                yield name


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_is_short_and_imports_what_is_public(path):
    source = path.read_text()
    assert len(source.splitlines()) <= 60
    assert list(private(source)) == []
    assert f"({path.name})" in (DOCS / "README.md").read_text()
    figure = DOCS / "figures" / f"{path.stem}.png"
    assert figure.stat().st_size < 100_000 and f"figures/{figure.name}" in (DOCS / "README.md").read_text()


@pytest.mark.parametrize("path", GALLERY, ids=lambda path: path.stem)
def test_an_example_of_the_gallery_is_short_and_opens_with_its_equation(path):
    """`make docs` runs them, and shows what they draw."""
    source = path.read_text()
    title, blank, equation, *_ = ast.get_docstring(ast.parse(source)).splitlines()
    assert title[-1] in ".?" and not blank and equation.startswith("    ")
    assert len(source.splitlines()) <= 60 and source.endswith("plt.show()\n")
    assert list(private(source)) == []


def test_there_are_enough_pages_and_what_is_private_is_seen():
    assert len(PAGES) == 8 and len(GALLERY) >= 14 and len({path.stem for path in GALLERY}) == len(GALLERY)
    for source in (
        "from bilevel._outer.step import Method",
        "import scipy",
        "import bilevel\nbilevel._solve",
        "import os_",
    ):
        assert list(private(source))
    assert not list(private("import bilevel\nfrom bilevel.problems import data\nbilevel.Heading(scaled=True)"))
