"""The table of families that write, in docs/language-models.md: `PYTHONPATH=tests python tests/model/test_writer_families.py`."""

from __future__ import annotations

from pathlib import Path

from writers import WRITERS, whole_model, writing_network

DOCS = Path(__file__).parents[2] / "docs" / "language-models.md"
BEGIN, END = "<!-- table: written by tests/model/test_writer_families.py -->\n", "<!-- end of the table -->"


def table() -> str:
    """A row a family."""
    rows = ["| family | batches are | head | adapter | merged |", "| --- | --- | --- | --- | --- |"]
    for family in sorted(WRITERS):
        network, _ = writing_network(whole_model(family))
        head = network.objective._head  # type: ignore[attr-defined]
        kind = "embeddings'" if head.tied else "its own"
        extras = [*(["scaled"] if head.scale != 1 else []), *(["capped"] if head.softcap else [])]
        rows.append(f"| {family} | {network.batching} | {', '.join([kind, *extras])} | exported | exported |")
    return "\n".join(rows) + "\n"


def test_the_documented_table_is_this_one() -> None:
    assert table() == DOCS.read_text().partition(BEGIN)[2].partition(END)[0]


if __name__ == "__main__":
    before, _, rest = DOCS.read_text().partition(BEGIN)
    DOCS.write_text(f"{before}{BEGIN}{table()}{END}{rest.partition(END)[2]}")
