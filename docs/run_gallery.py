"""Runs the examples of docs/gallery and keeps what each prints and draws, for the pages that hooks.py makes of them.

    python docs/run_gallery.py [name ...]

Each runs as it stands, in an empty folder, warnings being errors; one that is as it was when it last ran, and the
package too, does not run again. With SMOKE=1 a run of the package ends after two steps or epochs: does it run, does it
draw? What is kept is in docs/made, which git ignores. With names the others keep what they have, or a blank.
"""

import contextlib
import functools
import hashlib
import io
import json
import os
import runpy
import sys
import tempfile
import time
import warnings
from pathlib import Path

import jax
import matplotlib

matplotlib.use("Agg")  # draws without a screen
from matplotlib import pyplot as plt
from PIL import Image

import bilevel
from bilevel import problems, stn

HERE = Path(__file__).resolve().parent
MADE, SMOKE = HERE / "made", bool(os.environ.get("SMOKE"))


def at_most(function, **limits):
    """The function, with arguments that are no larger than that."""

    @functools.wraps(function)
    def limited(*args, **given):
        for name, limit in limits.items():
            given[name] = min(given.get(name, limit), limit)
        return function(*args, **given)

    return limited


def run(path: Path) -> dict:
    """What it printed, and its seconds; its figure is in docs/made."""
    printed, before = io.StringIO(), (time.perf_counter(), time.process_time())
    jax.config.update("jax_enable_x64", False)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), contextlib.chdir(folder):
        warnings.simplefilter("error")
        with contextlib.redirect_stdout(printed):
            runpy.run_path(str(path))
    wall, cpu = time.perf_counter() - before[0], time.process_time() - before[1]
    if len(plt.get_fignums()) != 1 or not printed.getvalue():
        raise SystemExit(f"{path.name} drew {len(plt.get_fignums())} figures, and has to draw one and print something")
    raw = io.BytesIO()
    plt.savefig(raw, dpi=100)
    plt.close("all")
    figure = Image.open(raw).convert("RGB")
    figure.quantize(256, dither=Image.Dither.NONE).save(MADE / f"{path.stem}.png", optimize=True)
    figure.thumbnail((480, 480))
    figure.save(MADE / f"{path.stem}_small.png", optimize=True)
    jax.clear_caches()
    return {"printed": printed.getvalue(), "wall": wall, "cpu": cpu}


def blank(path: Path) -> None:
    """In place of an example that was not among those named and has never run, so that the site has its page."""
    for end in ("", "_small"):
        Image.new("RGB", (480, 320), "lightgrey").save(MADE / f"{path.stem}{end}.png")
    found = {"key": "", "printed": "This site was built with a part of the gallery.", "wall": 0.0, "cpu": 0.0}
    (MADE / f"{path.stem}.json").write_text(json.dumps(found))


def main(names: list[str]) -> None:
    MADE.mkdir(exist_ok=True)
    plt.show = lambda: None  # the figure is saved instead
    if SMOKE:
        bilevel.solve = at_most(bilevel.solve, max_steps=2)
        stn.tune, stn.replay = (at_most(function, epochs=2) for function in (stn.tune, stn.replay))
    sources = [
        path for module in (bilevel, problems) for path in sorted(Path(str(module.__file__)).parent.rglob("*.py"))
    ]
    package = hashlib.sha256(b"".join(path.read_bytes() for path in sources) + bytes(SMOKE)).hexdigest()
    chosen = [path for path in sorted((HERE / "gallery").glob("*/*.py")) if not names or path.stem in names]
    for path in chosen:
        kept = MADE / f"{path.stem}.json"
        key = hashlib.sha256(package.encode() + path.read_bytes()).hexdigest()
        if kept.exists() and json.loads(kept.read_text())["key"] == key:
            continue
        found = run(path)
        kept.write_text(json.dumps({"key": key, **found}))
        print(f"{path.parent.name}/{path.stem}: {found['cpu']:.1f} CPU s, {found['wall']:.1f} s", flush=True)
    for path in sorted((HERE / "gallery").glob("*/*.py")):
        if not (MADE / f"{path.stem}.json").exists():
            blank(path)


if __name__ == "__main__":
    main(sys.argv[1:])
