"""How the code is cut, enforced: imports run one way, no name hides a module, files and functions are short, nobody
but the caller configures JAX, no machine's paths, no dead ones."""

import ast
import inspect
import re
import subprocess
from pathlib import Path

import pytest

import bilevel
from bilevel import stn

ROOT = Path(__file__).parent.parent
# What lies in bilevel imports from its own line and those before it.
LAYERS = [
    {"_linalg"},
    {
        "_problem",
        "_nonsmooth",
        "_chunked",
        "_processes",
        "_results",
        "_program",
        "_version",
        "_counts",
        "_arguments",
        "_inputs",
        "_leaves",
        "_checkout",
        "_plot",
        "_bar",
        "_interrupt",
    },
    {"_lower"},
    {"_certificate"},
    {"_outer"},
    {"_at_one_theta", "_estimate_error", "_check", "_checkpoint", "_objective", "_run", "_sampled", "_solve"},
    {"stn"},
    {"problems"},
    {"estimators"},
]
LAYER = {name: k for k, layer in enumerate(LAYERS) for name in layer}
# To be emptied: modules that are named as something public, and what is too long.
TO_RENAME: set[str] = set()
TO_SHORTEN: set[str] = set()


def python_files(*folders):
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def imports(tree, package):
    """Every dotted name that the code of a module in `package` imports, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def violations(source, package, module):
    """What `module` (None: an `__init__`) of `package`, a tuple of names, imports although it must not."""
    own = [*package[1:], module][0]
    wrong = []
    for name in imports(ast.parse(source), package):
        top, *inside = name.split(".")
        if top in ("experiments", "tests", "problems"):
            wrong.append(name)
        elif own is None:  # bilevel/__init__.py gathers everything, but for what is loaded on first use
            wrong += [name] if top == "bilevel" and inside[:1] == ["problems"] else []
        elif top == "bilevel" and own != "problems":  # that uses what is public, too
            # a name taken from the package itself (`from bilevel import solve`) is a circle, and no layer at all
            wrong += [name] if not inside or LAYER.get(inside[0], len(LAYERS)) > LAYER[own] else []
    return wrong


@pytest.mark.parametrize("path", python_files("bilevel", "problems"), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    package = path.relative_to(ROOT).parent.parts
    package = package if package[0] == "bilevel" else ("bilevel", *package)
    module = None if path.stem == "__init__" else path.stem
    own = [*package[1:], module][0]
    assert own is None or own in LAYER, f"give {own} its place in LAYERS"
    assert violations(path.read_text(), package, module) == []


@pytest.mark.parametrize(
    ("source", "package", "module"),
    [
        ("from .._problem import Constants", ("bilevel", "_linalg"), "norms"),
        ("from .._outer.step import Method", ("bilevel", "_lower"), "descend"),
        ("def f():\n    from .. import _checkpoint", ("bilevel", "_outer"), "step"),
        ("import bilevel._outer.step as d", ("bilevel", "_certificate"), "inequalities"),
        ("from bilevel import solve", ("bilevel", "_outer"), "accuracy"),
        ("from .stn import tune", ("bilevel",), "_solve"),
        ("from .problems import tv", ("bilevel",), None),
        ("from ..problems.tv import TotalVariation", ("bilevel", "stn"), "tune"),
        ("from problems import data", ("bilevel", "problems"), "tv"),
        ("from experiments import demo", ("bilevel", "problems"), "tv"),
    ],
)
def test_a_wrong_import_is_seen(source, package, module):
    assert violations(source, package, module)


def test_right_imports_pass():
    good = "import jax\nfrom .solver import iterate\nfrom .. import _results\nfrom bilevel._linalg.norms import norm"
    assert violations(good, ("bilevel", "_lower"), "descend") == []
    assert violations("from .._solve import solve\nfrom .layers import Linear", ("bilevel", "stn"), "train") == []
    assert violations("from bilevel import solve\nfrom .data import psnr", ("bilevel", "problems"), "tv") == []


def bare(source, modules):
    """The names of `modules` that are imported as if their folder were on the path."""
    return [name for name in imports(ast.parse(source), ()) if name.split(".")[0] in modules]


def test_experiments_are_imported_by_full_name():
    modules = {path.stem for path in python_files("experiments")} - {"__init__"}
    assert {"record", "tv", "checks"} <= modules
    found = {
        str(path.relative_to(ROOT)): bare(path.read_text(), modules) for path in python_files("experiments", "tests")
    }
    assert {path: names for path, names in found.items() if names} == {}
    assert bare("def f():\n    from record import Log", modules) and bare("import tv", modules)
    assert not bare("from experiments.paper import tv\nfrom bilevel.problems import foe", modules)


def named_as_public(paths, package):
    """The paths, relative to the folder of `package`, that name a public function or class of it in a part."""
    public = {name for name, what in vars(package).items() if name[0] != "_" and not inspect.ismodule(what)}
    return [path for path in paths if public & set(path.with_suffix("").parts)]


def test_no_public_name_is_that_of_a_module():
    """Or `from bilevel import x` is the one or the other, depending on what was imported before."""
    found = set()
    for package in (bilevel, stn):
        folder = Path(package.__file__).parent
        paths = [path.relative_to(folder) for path in folder.rglob("*.py")]
        found |= {str((folder / path).relative_to(ROOT)) for path in named_as_public(paths, package)}
    assert found == TO_RENAME
    assert named_as_public([Path("solve.py"), Path("_outer/maid/step.py")], bilevel)


def test_one_word_has_one_meaning_in_the_engine():
    """No class of the engine is named as another is."""
    paths = [path for path in python_files("bilevel") if path.relative_to(ROOT).parts[1] not in ("stn", "estimators")]
    nodes = [node for path in paths for node in ast.parse(path.read_text()).body]
    names = [node.name for node in nodes if isinstance(node, ast.ClassDef)]
    assert len(names) > 60 and sorted(set(names)) == sorted(names)


def too_long(source):
    """More than 220 lines, or a function of more than 60."""
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    return len(source.splitlines()) > 220 or any(node.end_lineno - node.lineno >= 60 for node in functions)


def test_files_and_functions_are_short():
    paths = python_files("bilevel", "problems", "experiments")
    assert {str(path.relative_to(ROOT)) for path in paths if too_long(path.read_text())} == TO_SHORTEN
    assert too_long("x = 0\n" * 221) and not too_long("x = 0\n" * 220)
    assert too_long("def f():\n" + "    x = 0\n" * 60) and not too_long("def f():\n" + "    x = 0\n" * 59)


def configures_jax(source):
    """The lines that set a JAX option or an environment variable of JAX; reading one, or naming it, is fine."""
    for node in ast.walk(ast.parse(source)):
        setter = isinstance(node, ast.Call) and re.search(r"(^|\.)(config\.update|enable_x64)$", ast.unparse(node.func))
        assigned = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        assigned = assigned and ast.unparse(node.value).endswith("config")
        if setter or assigned or (isinstance(node, ast.Constant) and node.value in ("JAX_ENABLE_X64", "XLA_FLAGS")):
            yield node.lineno


@pytest.mark.parametrize("path", python_files("bilevel", "problems"), ids=lambda path: str(path.relative_to(ROOT)))
def test_packages_do_not_configure_jax(path):
    """But for the estimators and one search, which compute in float64 for a while and leave no trace of it."""
    source = path.read_text()
    if path in (ROOT / "bilevel" / "estimators" / "_base.py", ROOT / "problems" / "without_features.py"):
        source = source.replace("with jax.enable_x64(True):", "if True:")
    assert list(configures_jax(source)) == []


def test_configuring_jax_is_seen():
    set_it = [
        'jax.config.update("jax_enable_x64", True)',
        "jax.config.jax_enable_x64 = True",
        "with enable_x64(): pass",
        'os.environ["JAX_ENABLE_X64"] = "1"',
    ]
    assert all(list(configures_jax(source)) == [1] for source in set_it)
    assert not list(configures_jax("jax.config.jax_enable_x64 or error(\"jax.config.update('jax_enable_x64', True)\")"))


def tracked_files():
    """What git has, or would have after `git add .`; in an unpacked sdist, what that lists."""
    if (ROOT / "PKG-INFO").exists():
        (sources,) = ROOT.glob("*.egg-info/SOURCES.txt")
        return [ROOT / name for name in sources.read_text().splitlines()]
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_large_files():
    """A clone stays fast: a megabyte at most, and a log or what lies beside it 200 kB."""
    sizes = {path: path.stat().st_size for path in tracked_files()}
    logs = {path: size for path, size in sizes.items() if path.parent == ROOT / "experiments" / "logs"}
    assert len(logs) > 20
    assert [str(path) for path, size in sizes.items() if size > 1_000_000] == []
    assert [str(path) for path, size in logs.items() if size > 200_000] == []


def test_no_utils():
    assert [path for path in tracked_files() if path.stem in ("utils", "util", "helpers")] == []


MACHINE_PATH = re.compile(r"(?<![\w.~/:-])/(?:home|root|tmp|work|mnt|opt|Users|farm)/[\w.]|[A-Z]:\\Users")


def test_no_machine_paths():
    found = []
    for path in tracked_files():
        content = path.read_bytes()
        if b"\0" in content:  # a figure
            continue
        lines = content.decode().splitlines()
        found += [f"{path.relative_to(ROOT)}:{k}" for k, line in enumerate(lines, 1) if MACHINE_PATH.search(line)]
    assert found == []


def test_a_machine_path_is_seen():
    for place in ("home", "tmp"):
        assert MACHINE_PATH.search(f'open("/{place}/me/data.png")')
    assert not MACHINE_PATH.search("problems/tmp/x and ../shared/data, gradient/work/second")


# `experiments/attack/checks.py` in code and text; ](figures/tv.png) in Markdown, beside the file that says so
NAMED = re.compile(r"(?<![\w/.])experiments/[\w/]+\.(?:py|md|png|jsonl)\b")
LINKED = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)")


def dead(path, text):
    """The files that it names or links to and that are not there."""
    links = [path.parent / link for link in LINKED.findall(text)] if path.suffix == ".md" else []
    return [str(file) for file in [*(ROOT / name for name in NAMED.findall(text)), *links] if not file.exists()]


def test_no_dead_paths():
    read = (".py", ".md", ".toml", ".in", "")
    paths = [path for path in tracked_files() if path.suffix in read and path.name != "test_layout.py"]
    assert {ROOT / name for name in ("README.md", "Makefile", "experiments/README.md", "docs/README.md")} <= set(paths)
    assert [file for path in paths for file in dead(path, path.read_text())] == []
    assert dead(ROOT / "README.md", "[a](figures/x.png)") and dead(ROOT / "Makefile", "experiments/x.py")
    assert not dead(ROOT / "README.md", "[a](experiments/README.md#speed), [b](https://arxiv.org/abs/1903.03088)")


def test_every_long_case_exists():
    """A name in long.txt that no test has would leave the test in `make test`."""
    for line in (ROOT / "tests" / "long.txt").read_text().splitlines():
        file, name = line.partition("[")[0].split("::")
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(), line
