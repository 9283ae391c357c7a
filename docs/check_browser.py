"""Every page of the built site in a headless Chromium, as wide as a desktop and as a phone: no error in its console, no
picture missing, nothing wider than the screen.

    python docs/check_browser.py site [folder for screenshots]

Needs Playwright, and a Chromium that the system has.
"""

import functools
import shutil
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from playwright.sync_api import sync_playwright

MISSING = "[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
BESIDE = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
WIDTHS = {"desktop": 1280, "phone": 390}


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def hear(wrong, said):
    """What a page says in its console."""
    if said.type == "error":
        wrong.append(f"{said.page.url}: {said.text}")


def fail(wrong, error):
    """What a page's scripts raise. Playwright marks what it is given, which `wrong.append` does not bear."""
    wrong.append(error)


def main(site: Path, screenshots: Path | None) -> list:
    """What is wrong, a line each."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    wrong = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, width in WIDTHS.items():
            page = browser.new_page(viewport={"width": width, "height": 900})
            page.on("console", functools.partial(hear, wrong))
            page.on("pageerror", functools.partial(fail, wrong))
            for path in sorted(site.rglob("index.html")):
                place = path.parent.relative_to(site).as_posix()
                page.goto(f"http://127.0.0.1:{server.server_port}/{place}/", wait_until="networkidle")
                wrong += [f"{place}, {name}: no picture {source}" for source in page.evaluate(MISSING)]
                if (over := page.evaluate(BESIDE)) > 0:
                    wrong.append(f"{place}, {name}: {over} pixels too wide")
                if screenshots:
                    page.screenshot(path=screenshots / f"{place.replace('/', '_')}_{name}.png", full_page=True)
        browser.close()
    return wrong


if __name__ == "__main__":
    shutil.which("chromium") or sys.exit("no Chromium here: install it, or leave this check out")
    found = main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
    sys.exit("\n".join(map(str, found)) if found else 0)
