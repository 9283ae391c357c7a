"""What the site is made of beside its pages: the examples of docs/ with their figures, the experiments' figures, and a
page of the reference for each module that is public."""

import ast
import inspect
import json
import re
import textwrap
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File
from tables import LOGS, folded

import bilevel
from bilevel import estimators, problems, stn

INDEX = "index.md"
HERE, ROOT = Path(__file__).parent, Path(__file__).resolve().parent.parent
MADE = HERE / "made"  # where run_gallery.py keeps what the examples printed and drew
FOLDERS = {
    "own": "With what is yours",
    "imaging": "Imaging",
    "statistics": "Statistics",
    "networks": "Networks",
}


def on_files(files, config):
    """Pages and figures that lie elsewhere in the checkout."""
    for figure in sorted((ROOT / "experiments" / "figures").glob("*.png")):
        files.append(File.generated(config, f"figures/{figure.name}", abs_src_path=str(figure)))
    for log in sorted(LOGS.glob("*.jsonl")):
        files.append(File.generated(config, f"logs/{log.name}", abs_src_path=str(log)))
    examples = sorted(HERE.glob("extend_*.py"))
    for path in examples:
        files.append(File.generated(config, f"extending/{path.stem}.md", content=example(path)))
        figure = HERE / "figures" / f"{path.stem}.png"
        files.append(File.generated(config, f"extending/{figure.name}", abs_src_path=str(figure)))
    files.append(File.generated(config, "extending/index.md", content=parts(examples)))
    for path in sorted((HERE / "gallery").glob("*/*.py")):
        files.append(File.generated(config, f"gallery/{path.stem}.md", content=executed(path)))
        for name in (f"{path.stem}.png", f"{path.stem}_small.png"):
            files.append(File.generated(config, f"gallery/{name}", abs_src_path=str(MADE / name)))
        files.append(File.generated(config, f"gallery/{path.name}", abs_src_path=str(path)))
    files.append(File.generated(config, f"gallery/{INDEX}", content=thumbnails()))
    files.append(File.generated(config, f"experiments/{INDEX}", content=experiments()))
    for name, module in {"bilevel": bilevel, "problems": problems, "estimators": estimators, "stn": stn}.items():
        files.append(File.generated(config, f"api/{name}.md", content=reference(name, module)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Long tables folded; links that work in the checkout, made to work on the site."""
    up = "../" * page.file.src_uri.count("/")
    try:
        markdown = folded(markdown, f"{up}logs")
    except ValueError as error:
        raise PluginError(f"{page.file.src_uri}: {error}") from error
    markdown = re.sub(r"\]\((?:\.\./)+experiments/figures/", f"]({up}figures/", markdown)
    markdown = re.sub(r"\]\((?:\.\./)+(extend_\w+)\.py\)", rf"]({up}extending/\1.md)", markdown)
    markdown = re.sub(r"\]\((?:\.\./)+gallery/\w+/(\w+)\.py\)", rf"]({up}gallery/\1.md)", markdown)
    markdown = re.sub(r"\]\((?:\.\./)+gallery/README\.md\)", f"]({up}gallery/{INDEX})", markdown)
    markdown = re.sub(r"\]\((?:\.\./)+experiments/README\.md\)", f"]({up}experiments/{INDEX})", markdown)
    return re.sub(r"\]\((?:\.\./)+README\.md\)", f"]({up}extending/index.md)", markdown)


def example(path: Path) -> str:
    """A page: the docstring, the figure, the code."""
    source = path.read_text(encoding="utf-8")
    title, rest = said(source)
    code = source.split('"""', 2)[2].lstrip()
    return f"# {title}\n{rest}\n\n![{title}]({path.stem}.png)\n\n```python\n{code}```\n"


def parts(examples: list[Path]) -> str:
    """The index of the parts of one's own, with their figures."""
    lines = ["# Parts of your own\n", "Each adds one part in at most 60 lines and touches nothing in the package.\n"]
    for path in examples:
        title, _ = said(path.read_text(encoding="utf-8"))
        lines.append(f'## [{title}]({path.stem}.md)\n\n![{title}]({path.stem}.png){{ width="400" }}\n')
    return "\n".join(lines)


def executed(path: Path) -> str:
    """A page of the gallery: the docstring, what the example drew and printed when it ran, its seconds, the code."""
    source, kept = path.read_text(encoding="utf-8"), MADE / f"{path.stem}.json"
    if not kept.exists():
        raise PluginError(f"{path.name} has not run: `make gallery`")
    found, (title, rest) = json.loads(kept.read_text()), said(source)
    printed, code = found["printed"].strip("\n"), source.split('"""', 2)[2].lstrip()
    printed = "\n".join(textwrap.fill(line, 110) for line in printed.split("\n"))
    lines = [f"# {title}", rest.strip("\n"), f"![{title}]({path.stem}.png)", f"```text\n{printed}\n```"]
    spent = f"{found['cpu']:.0f} s of CPU time when this page was made, compiling included."
    lines += [f"{spent} [{path.name}]({path.name}):"]
    return "\n\n".join([*lines, f"```python\n{code}```\n"])


def thumbnails() -> str:
    """The index of the gallery: a card for each example, by folder."""
    lines = [(HERE / "gallery" / "README.md").read_text(encoding="utf-8") + tried()]
    for folder, heading in FOLDERS.items():
        lines.append(f'## {heading}\n\n<div class="grid cards" markdown>\n')
        for path in sorted((HERE / "gallery" / folder).glob("*.py")):
            title, _ = said(path.read_text(encoding="utf-8"))
            lines.append(f"-   [![{title}]({path.stem}_small.png)]({path.stem}.md)\n\n    [{title}]({path.stem}.md)\n")
        lines.append("</div>\n")
    return "\n".join(lines)


def tried() -> str:
    """What `make try-wheel` measured, as a table; nothing where it has not run."""
    kept = HERE / "tried.json"
    if not kept.exists():
        return ""
    found = json.loads(kept.read_text(encoding="utf-8"))
    if not found:
        return ""
    lines = [f"| seconds, imports and compiling included | {' | '.join(found)} |", "|---" * (len(found) + 1) + "|"]
    for name in next(iter(found.values())):
        seconds = " | ".join(f"{one[name]['wall']:.0f}" for one in found.values())
        lines.append(f"| {name} | {seconds} |")
    return "\n" + "\n".join(lines) + "\n"


def said(source: str) -> tuple[str, str]:
    """The first line of a module's docstring, as a title, and the rest."""
    title, rest = ast.get_docstring(ast.parse(source)).split("\n", 1)
    return title.rstrip("."), rest


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
