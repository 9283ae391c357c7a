"""The examples of the README and of the guides run as printed and print what is said there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXTS = {
    path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
}
FOUND = {name: re.findall(r"```python\n(.*?)```\s+```text\n(.*?)```", text, re.DOTALL) for name, text in TEXTS.items()}
EXAMPLES = {example: name for name, examples in FOUND.items() for example in examples}
NUMBER = r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?"


@pytest.mark.parametrize(("code", "printed"), EXAMPLES, ids=list(EXAMPLES.values()))
def test_an_example(code, printed):
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""  # no progress bar off a terminal
    assert re.sub(NUMBER, "#", run.stdout) == re.sub(NUMBER, "#", printed)
    for now, then in zip(re.findall(NUMBER, run.stdout), re.findall(NUMBER, printed), strict=True):
        # a bound may move by a factor between versions of JAX, a value may not, a network's loss a little
        tolerance = 2.0 if "e" in then else 0.25 if f"about {then}" in printed else 5e-3
        assert float(now) == pytest.approx(float(then), rel=tolerance)


def test_every_example_shows_its_output():
    """The README's, and one at least in each guide that has code."""
    assert {name: len(found) for name, found in FOUND.items()} == {
        name: text.count("```python") for name, text in TEXTS.items()
    }
    assert len(TEXTS["README"].splitlines()) <= 150 and len(EXAMPLES) >= 6
