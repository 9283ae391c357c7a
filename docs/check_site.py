"""Every link and picture of the built site leads somewhere: to a file of the site and, after #, to a name on its page;
and no inner product, <a, b>, was taken for a tag of HTML, which shows nothing of it.

    python docs/check_site.py site

What leads to other hosts is not asked for.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """Where a page leads, and the names on it."""

    def __init__(self, path: Path):
        super().__init__()
        self.links, self.names, self.lost = [], {"", "__top"}, []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if "," in tag or any("," in name for name in given):
            self.lost.append(self.get_starttag_text())
        self.links += [given[key] for key in ("href", "src") if given.get(key)]
        self.names |= {given[key] for key in ("id", "name") if given.get(key)}


def broken(site: Path) -> list[str]:
    """`page: link` of each that leads nowhere, and what is no tag. 404.html is shown anywhere: it has absolute ones."""
    pages = {path.resolve(): Page(path) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        found += [
            f"{path.relative_to(site.resolve())}: {text}, which is no tag: write it as code" for text in page.lost
        ]
        for link in page.links:
            to = urlsplit(link)
            if to.scheme or to.netloc:
                continue
            root = site if to.path.startswith("/") else path.parent
            file = (root / unquote(to.path).lstrip("/")).resolve() if to.path else path
            file = file / "index.html" if file.is_dir() else file
            if not file.is_file() or (file in pages and to.fragment and unquote(to.fragment) not in pages[file].names):
                found.append(f"{path.relative_to(site.resolve())}: {link}")
    return found


if __name__ == "__main__":
    wrong = broken(Path(sys.argv[1]))
    sys.exit("\n".join(["links that lead nowhere, or inner products that are lost:", *wrong]) if wrong else 0)
