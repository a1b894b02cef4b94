"""Rewrites the generated part of docs/benchmarks.md from the recorded results.

python benchmarks/table.py
"""

from __future__ import annotations

import json
from pathlib import Path

from records import origins, table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "benchmarks.json"
PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- begin: written by benchmarks/table.py -->", "<!-- end -->"


def fill(page: str, entries: dict[str, dict[str, object]]) -> str:
    """The page with the part between the two marks replaced."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{table(entries)}\n\nFrom:\n\n{origins(entries)}\n\n{END}{after}"


def main() -> None:
    """Reads the results, if there are any, and rewrites the page."""
    entries = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    PAGE.write_text(fill(PAGE.read_text(), entries))


if __name__ == "__main__":
    main()
