"""What the site is made of beside its pages: the examples of docs/ with their figures, the experiments' figures, and a
page of the reference for each module that is public."""

import ast
import inspect
import re
from pathlib import Path

from mkdocs.structure.files import File

import bilevel
from bilevel import problems, stn

INDEX = "index.md"
HERE, ROOT = Path(__file__).parent, Path(__file__).resolve().parent.parent


def on_files(files, config):
    """Pages and figures that lie elsewhere in the checkout."""
    for figure in sorted((ROOT / "experiments" / "figures").glob("*.png")):
        files.append(File.generated(config, f"figures/{figure.name}", abs_src_path=str(figure)))
    examples = sorted(HERE.glob("extend_*.py"))
    for path in examples:
        files.append(File.generated(config, f"extending/{path.stem}.md", content=example(path)))
        figure = HERE / "figures" / f"{path.stem}.png"
        files.append(File.generated(config, f"extending/{figure.name}", abs_src_path=str(figure)))
    files.append(File.generated(config, "extending/index.md", content=gallery(examples)))
    files.append(File.generated(config, f"experiments/{INDEX}", content=experiments()))
    for name, module in {"bilevel": bilevel, "problems": problems, "stn": stn}.items():
        files.append(File.generated(config, f"api/{name}.md", content=reference(name, module)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links that work in the checkout, made to work on the site."""
    up = "../" * page.file.src_uri.count("/")
    markdown = re.sub(r"\]\((?:\.\./)+experiments/figures/", f"]({up}figures/", markdown)
    markdown = re.sub(r"\]\((?:\.\./)+(extend_\w+)\.py\)", rf"]({up}extending/\1.md)", markdown)
    markdown = re.sub(r"\]\((?:\.\./)+experiments/README\.md\)", f"]({up}experiments/{INDEX})", markdown)
    return re.sub(r"\]\((?:\.\./)+README\.md\)", f"]({up}extending/index.md)", markdown)


def example(path: Path) -> str:
    """A page: the docstring, the figure, the code."""
    source = path.read_text(encoding="utf-8")
    title, rest = ast.get_docstring(ast.parse(source)).split("\n", 1)
    code = source.split('"""', 2)[2].lstrip()
    return f"# {title.rstrip('.')}\n{rest}\n\n![{title}]({path.stem}.png)\n\n```python\n{code}```\n"


def gallery(examples: list[Path]) -> str:
    """The index of the examples, with their figures."""
    lines = ["# Parts of your own\n", "Each adds one part in at most 60 lines and touches nothing in the package.\n"]
    for path in examples:
        title = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).split("\n", 1)[0]
        lines.append(f'## [{title.rstrip(".")}]({path.stem}.md)\n\n![{title}]({path.stem}.png){{ width="400" }}\n')
    return "\n".join(lines)


def experiments() -> str:
    """experiments/README.md, whose links lead to the pages."""
    text = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    return text.replace("](../docs/pages/experiments/", "](")


def reference(name: str, module) -> str:
    """Every public name of a module, by kind."""
    public = {k: v for k, v in vars(module).items() if not k.startswith("_") and not inspect.ismodule(v)}
    dotted = "problems" if module is problems else module.__name__  # where its folder is
    lines = [f"# `{module.__name__}`\n", (module.__doc__ or "").split("\n", 1)[0] + "\n"]
    for key in sorted(public, key=str.lower):
        lines.append(f"::: {dotted}.{key}\n")
    return "\n".join(lines)
