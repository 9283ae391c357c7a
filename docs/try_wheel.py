"""A wheel as a new user has it: in an environment of its own and an empty folder, with nothing but README and site.

    python docs/try_wheel.py bilevel-....whl python3.11 python3.12 ...

Runs the README's examples, the quick start and five pages of the gallery on what is one's own, their code as the
built site shows it, with the newest versions of what the wheel needs. Seconds go to docs/tried.json, for the gallery's
index. An example that fails ends it.
"""

import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from html.parser import HTMLParser
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGES = {
    "quickstart": "quickstart",
    "gallery/own_photographs": "own photographs, denoised",
    "gallery/own_data_frame": "own table, fitted and predicted",
    "gallery/your_problem": "own lower level",
    "gallery/interrupted": "a run interrupted and resumed",
    "gallery/tune_a_cnn": "a network tuned",
}


class Code(HTMLParser):
    """`blocks`: the examples in Python on a page, as they read."""

    def __init__(self, text: str):
        super().__init__()
        self.blocks, self.inside, self.block = [], False, False
        self.feed(text)
        self.blocks = [block for block in self.blocks if block.startswith(("import ", "from "))]

    def handle_starttag(self, tag, attrs):
        if tag == "div":
            self.block = dict(attrs).get("class") == "highlight"
        if tag == "code" and self.block:
            self.inside, self.block = True, False
            self.blocks.append("")

    def handle_endtag(self, tag):
        self.inside &= tag != "code"

    def handle_data(self, data):
        if self.inside:
            self.blocks[-1] += data


def examples() -> dict[str, str]:
    """What to run, by name."""
    blocks = re.findall(r"```python\n(.*?)```", (HERE.parent / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    found = {f"README, example {k}": block for k, block in enumerate(blocks, 1)}
    for page, name in PAGES.items():
        (code,) = Code((HERE.parent / "site" / page / "index.html").read_text(encoding="utf-8")).blocks
        found[name] = code
    return found


def version(python: str) -> str:
    return subprocess.check_output([python, "--version"], text=True).strip()


def tried(wheel: Path, python: str) -> dict[str, dict[str, float]]:
    """Wall-clock and CPU seconds of each, and of the installation."""
    seconds = {}

    def run(name, folder, *command):
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        environment = {**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": ""}
        subprocess.run(command, cwd=folder, check=True, env=environment, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        seconds[name] = {"wall": round(time.perf_counter() - start, 1), "cpu": round(cpu, 1)}
        print(f"{python}: {name}: {seconds[name]['cpu']} CPU s, {seconds[name]['wall']} s", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        own = f"{folder}/environment/bin/python"
        subprocess.run([python, "-m", "venv", f"{folder}/environment"], check=True)
        wanted = [f"{wheel}[estimators,images,plots]", "pandas"]
        run("installation", folder, own, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted)
        for name, code in examples().items():
            with tempfile.TemporaryDirectory() as empty:
                run(name, empty, own, "-c", code)
    return seconds


if __name__ == "__main__":
    wheel, *pythons = sys.argv[1:]
    if not pythons:
        raise SystemExit("none of these Pythons is here: name some, PYTHONS='python3.12 python3.13'")
    found = {version(python): tried(Path(wheel).resolve(), python) for python in pythons}
    (HERE / "tried.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
