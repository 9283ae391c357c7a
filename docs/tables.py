"""The tables of the pages about experiments: what an experiment's report prints from its log, and nothing else.

    python docs/tables.py            writes them into the pages
    python docs/tables.py --check    ends with an error where a page has another

A page says above a block of text whose it is, and which rows are worth seeing first: a regular expression for how they
begin, at most eight of one table. The site shows these rows, folds the whole away, and links to the log.

    <!-- printed by experiments.paper.tv; first: maid|hoag -->
"""

import contextlib
import importlib
import io
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES, LOGS = ROOT / "docs" / "pages" / "experiments", ROOT / "experiments" / "logs"
BLOCK = re.compile(r"<!-- printed by (?P<by>[\w.]+)(?:; first: (?P<first>.*?))? -->\n```text\n(?P<text>.*?)\n```", re.S)
ROWS = 8


def log_of(module: str) -> str:
    """The name of an experiment's log."""
    return f"{module.rsplit('.', 1)[-1]}.jsonl"


def printed(module: str) -> str:
    """What the experiment prints from its log."""
    record = importlib.import_module("experiments._harness.record")
    out, runs = io.StringIO(), record.ended(record.Log(LOGS / log_of(module), fresh=False))
    with contextlib.redirect_stdout(out):
        importlib.import_module(module).report(runs)
    return out.getvalue().strip("\n")


def renewed(page: str) -> str:
    """The page, with every block as its log has it. Raises ValueError for a marker without a block, or an empty one."""
    if page.count("<!-- printed by ") != len(BLOCK.findall(page)):
        raise ValueError("each `<!-- printed by ... -->` needs a ```text block of at least one line below it")

    def block(match: re.Match) -> str:
        begin, end = (match.start("text") - match.start(), match.end("text") - match.start())
        return match[0][:begin] + printed(match["by"]) + match[0][end:]

    return BLOCK.sub(block, page)


def folded(page: str, logs: str) -> str:
    """The page as the site has it; `logs` is the way from it to the folder of logs."""

    def block(match: re.Match) -> str:
        whole = f"```text\n{match['text']}\n```"
        link = f"\n\nFrom [{log_of(match['by'])}]({logs}/{log_of(match['by'])})."
        if match["first"] is None:
            if rows(match["text"]) > ROWS:
                raise ValueError(f"{match['by']} prints more than {ROWS} rows: say which come `first:`")
            return whole + link
        indented = "\n".join("    " + line for line in whole.split("\n"))
        shown = chosen(match["text"], match["first"])
        return f'```text\n{shown}\n```\n\n??? note "Everything that was measured"\n\n{indented}{link}'

    return BLOCK.sub(block, page)


def rows(text: str) -> int:
    """Of its longest table: the lines between a rule and a blank line."""
    return max(
        (len(table.split("\n")) for table in re.findall(r"^---+\n(.+?)(?:\n\n|\Z)", text, re.M | re.S)), default=0
    )


def chosen(text: str, first: str) -> str:
    """Head, rule and rows that begin so, of the first table that has some."""
    for table in re.split(r"\n\n+", text):
        head, rule, body = (table + "\n").partition(
            re.search(r"^---+$", table, re.M)[0] if "\n---" in table else "\n\n"
        )
        found = [line for line in body.strip("\n").split("\n") if re.match(first, line)]
        if found and len(found) <= ROWS:
            return f"{head}{rule}\n" + "\n".join(found)
        if found:
            raise ValueError(f"{len(found)} rows begin with {first}, and at most {ROWS} come first")
    raise ValueError(f"no row begins with {first}")


def main() -> None:
    sys.path.insert(0, str(ROOT))
    stale = []
    for path in sorted(PAGES.glob("*.md")):
        page = path.read_text(encoding="utf-8")
        if (new := renewed(page)) != page:
            stale.append(path.name)
            if "--check" not in sys.argv:
                path.write_text(new, encoding="utf-8")
    if stale and "--check" in sys.argv:
        raise SystemExit(f"other tables than the logs': {', '.join(stale)}; `make tables` writes them anew")
    print(f"tables from the logs: {'written anew: ' + ', '.join(stale) if stale else 'all as they are'}")


if __name__ == "__main__":
    main()
