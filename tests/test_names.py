"""Experiments and pages call the package by names that it has: most of their code runs in hours, not in tests."""

import ast
import importlib
import re
import types
from pathlib import Path

import pytest

import bilevel

ROOT = Path(__file__).parent.parent
FILES = sorted(path for folder in ("experiments", "docs") for path in (ROOT / folder).rglob("*.py"))


def found(dotted):
    """What `dotted` is, or None if there is no such name."""
    module, _, name = dotted.rpartition(".")
    holder = found(module) if module else importlib.import_module(name)
    if not module or holder is None:
        return holder
    if isinstance(holder, types.ModuleType) and not hasattr(holder, name):
        try:
            return importlib.import_module(dotted)
        except ModuleNotFoundError:
            return None
    return getattr(holder, name, None)


def missing(source):
    """The names of the package, imported or after a module of it and a dot, that are not there."""
    tree, modules, names = ast.parse(source), {}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.asname or alias.name: alias.name for alias in node.names if alias.name == "bilevel"}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "bilevel":
            modules |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    modules = {name: path for name, path in modules.items() if isinstance(found(path), types.ModuleType)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            names.add(f"{modules[node.value.id]}.{node.attr}")
    return sorted(name for name in names if found(name) is None and not name.endswith("__"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_name_of_the_package_is_there(path):
    assert missing(path.read_text(encoding="utf-8")) == []


def test_a_missing_name_is_seen():
    assert bilevel.solve is not None
    source = "import bilevel\nfrom bilevel._outer import programs\nbilevel.solve, bilevel.solv, programs.query"
    assert missing(source) == ["bilevel._outer.programs.query", "bilevel.solv"]
    assert missing("from bilevel.problems import data, nothing\ndata.kodaks") == [
        "bilevel.problems.data.kodaks",
        "bilevel.problems.nothing",
    ]


def test_every_bullet_of_a_docstring_begins_its_line():
    """Two on a line are shown as one by the site."""
    paths = [path for folder in ("bilevel", "problems") for path in (ROOT / folder).rglob("*.py")]
    assert [str(path) for path in paths if re.search(r"[.,:)] - `", path.read_text())] == []
