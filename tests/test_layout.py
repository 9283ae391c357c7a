"""How the code is cut, enforced: imports run one way, nobody but the caller configures JAX, no machine's paths."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# A module of bilevel imports from its own layer and those before it. Not every one needs to exist.
LAYERS = [
    {"results", "program", "norms", "dependence"},
    {"problem"},
    {"bounds", "layout"},
    {"krylov", "secants"},
    {"estimates", "undeclared"},
    {"local_curvature"},
    {"lower", "hypergradient"},
    {"solvers", "precision"},
    {"accuracy", "direction", "predict", "linesearch"},
    {"inputs", "meter"},
    {"method"},
    {"pointwise", "refine"},
    {"goal_oriented"},
    {"descent", "quasi_newton"},
    {"methods"},
    {"checkpoint"},
    {"check_probe"},
    {"check_curvature", "check_lines", "check_search"},
    {"check_verdicts"},
    {"solve", "check"},
    {"stn"},
]
LAYER = {name: k for k, layer in enumerate(LAYERS) for name in layer}


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
    parts = [name.split(".") for name in imports(ast.parse(source), package)]
    wrong = [".".join(name) for name in parts if name[0] == "experiments" or name[0] == "tests"]
    if package[0] == "problems":
        return wrong
    wrong += [".".join(name) for name in parts if name[0] == "problems"]
    own = package[1] if len(package) > 1 else module
    if own is None:  # bilevel/__init__.py gathers everything
        return wrong
    inside = [name for name in parts if name[0] == "bilevel"]
    # a name taken from the package itself (`from bilevel import solve`) is a circle, and no layer at all
    return wrong + [".".join(n) for n in inside if len(n) < 2 or LAYER.get(n[1], len(LAYERS)) > LAYER[own]]


@pytest.mark.parametrize("path", python_files("bilevel", "problems"), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    package = path.relative_to(ROOT).parent.parts
    module = None if path.stem == "__init__" else path.stem
    if package == ("bilevel",) and module is not None:
        assert module in LAYER, f"give {module} its place in LAYERS"
    assert violations(path.read_text(), package, module) == []


@pytest.mark.parametrize(
    ("source", "package", "module"),
    [
        ("from .descent import solve", ("bilevel",), "lower"),
        ("def f():\n    from . import checkpoint", ("bilevel",), "descent"),
        ("import bilevel.descent as d", ("bilevel",), "bounds"),
        ("from bilevel import solve", ("bilevel",), "accuracy"),
        ("from ..stn import tune", ("bilevel", "sub"), "descent"),
        ("import problems.tv", ("bilevel",), None),
        ("from experiments import demo", ("problems",), "tv"),
    ],
)
def test_a_wrong_import_is_seen(source, package, module, monkeypatch):
    monkeypatch.setitem(LAYER, "sub", 1)
    assert violations(source, package, module)


def test_right_imports_pass():
    good = "import jax\nfrom .bounds import omega\nfrom . import results\nfrom bilevel.hypergradient import z"
    assert violations(good, ("bilevel",), "lower") == []
    assert violations("from ..descent import solve\nfrom .layers import Linear", ("bilevel", "stn"), "train") == []
    assert violations("from bilevel import solve\nfrom .data import psnr", ("problems",), "tv") == []


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
    assert list(configures_jax(path.read_text())) == []


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
