"""`bilevel.problems` is found wherever the package is, and no other name is taken; the README reads on an index."""

import os
import re
import runpy
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from zipfile import ZipFile

import pytest
import setuptools

ROOT = Path(__file__).resolve().parent.parent
INSTALLED = (".py", ".typed", ".npz")  # the last: learnt denoisers


def python(code, folder, path):
    """What Python prints that starts in `folder` and looks in `path` for packages."""
    environment = {**os.environ, "PYTHONPATH": str(path)}
    run = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_in_a_checkout_problems_stands_for_bilevel_problems(tmp_path):
    """Loaded on first use, from the path alone, though another checkout is installed, by a finder that knows its
    folders; the old name warns, and brings no class twice."""
    other = tmp_path / "other" / "problems" / "__init__.py"
    other.parent.mkdir(parents=True)
    other.write_text("")
    code = f"""
import sys, warnings
from importlib.machinery import PathFinder
class Editable:
    def find_spec(name, path=None, target=None):
        return PathFinder.find_spec("problems", [{str(tmp_path / "other")!r}]) if name == "bilevel.problems" else None
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in f.__module__.lower()] + [Editable]
import bilevel
assert "bilevel.problems" not in sys.modules and not hasattr(bilevel, "problem")
Quadratic = bilevel.problems.Quadratic
with warnings.catch_warnings(record=True) as caught:
    import problems
    from problems.quadratic import Quadratic as other
    import problems.data as data
assert [w.category for w in caught if "problems" in str(w.message)] == [DeprecationWarning]
import bilevel.problems.data
assert problems is bilevel.problems and other is Quadratic and data is bilevel.problems.data
print(bilevel.problems.__file__)
"""
    assert Path(python(code, tmp_path, ROOT).strip()) == ROOT / "problems" / "__init__.py"


def test_every_folder_is_a_package_that_is_installed():
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {
        path.parent.relative_to(ROOT) for name in ("bilevel", "problems") for path in (ROOT / name).rglob("*.py")
    }
    names = [".".join(f.parts if f.parts[0] == "bilevel" else ("bilevel", *f.parts)) for f in folders]
    assert sorted(options["packages"]) == sorted(names)


@pytest.mark.skipif(int(version("setuptools").split(".")[0]) < 77, reason="pyproject.toml needs setuptools 77")
def test_a_wheel_holds_problems_and_leaves_their_name_to_others(tmp_path):
    """Built of a copy, since building leaves files; used from a folder with a `problems.py`."""
    source, site, folder = tmp_path / "source", tmp_path / "site", tmp_path / "folder"
    names = ["pyproject.toml", "setup.py", "README.md", "LICENSE"]
    modules = [p for name in ("bilevel", "problems") for p in (ROOT / name).rglob("*") if p.suffix in INSTALLED]
    for path in [*(ROOT / name for name in names), *modules]:
        copy = source / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, "-w", tmp_path, source], check=True)
    with ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(site)
    inside = {path.relative_to(site) for path in site.rglob("*") if path.suffix in INSTALLED}
    expected = (path.relative_to(ROOT) for path in modules)
    assert inside == {Path("bilevel", path) if path.parts[0] == "problems" else path for path in expected}
    assert {path.name.split("-")[0] for path in site.iterdir()} == {"bilevel"}

    folder.mkdir()
    (folder / "problems.py").write_text("mine = True\n")
    code = """
import bilevel, problems, sys
from bilevel.problems.tv import TotalVariation
assert problems.mine and TotalVariation is bilevel.problems.TotalVariation
assert not any(finder.__module__ == "bilevel._checkout" for finder in sys.meta_path if isinstance(finder, type))
print(bilevel.problems.__file__)
"""
    assert Path(python(code, folder, site).strip()) == site / "bilevel" / "problems" / "__init__.py"


@pytest.mark.parametrize(("site", "links"), [("", 0), ("https://example.org/bilevel/", 15)])
def test_the_readme_has_no_link_into_a_checkout(site, links, monkeypatch):
    """Where the package index shows it: they lead to the site, or are words."""
    told = {}
    monkeypatch.setenv("BILEVEL_SITE", site)
    monkeypatch.setattr(setuptools, "setup", told.update)
    runpy.run_path(str(ROOT / "setup.py"))
    text = told["long_description"]
    assert not re.search(r"\]\((?!https?://)", text) and "```python" in text
    assert text.count("](https://example.org/bilevel/") >= links
    assert ("](https://example.org/bilevel/figures/demo.png)" in text) == bool(site)
    assert ("](https://example.org/bilevel/guides/statistics/)" in text) == bool(site)
