"""The README's examples run as printed and print what the README says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = re.findall(r"```python\n(.*?)```\s+```text\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
NUMBER = r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?"


@pytest.mark.parametrize(
    "code, printed", EXAMPLES, ids=["tv", "own problem", "restoration", "statistics", "kinks", "self-tuning"]
)
def test_readme(code, printed):
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""  # no progress bar off a terminal
    assert re.sub(NUMBER, "#", run.stdout) == re.sub(NUMBER, "#", printed)
    for now, then in zip(re.findall(NUMBER, run.stdout), re.findall(NUMBER, printed), strict=True):
        # a bound may move by a factor between versions of JAX, a value may not, a network's loss a little
        tolerance = 2.0 if "e" in then else 0.25 if f"about {then}" in printed else 5e-3
        assert float(now) == pytest.approx(float(then), rel=tolerance)


def test_every_example_shows_its_output():
    assert len(EXAMPLES) == (ROOT / "README.md").read_text().count("```python")
