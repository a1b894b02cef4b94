"""20 Newsgroups as the literature uses it: articles without headers, footers and quotes.

Headers and signatures give the group away, so published results leave them out. The rules are those of
scikit-learn's `fetch_20newsgroups(remove=("headers", "footers", "quotes"))`, applied in its order, so that the
texts agree character by character.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from lora_a2.settings.options import Options, option

GROUPS = frozenset(
    {
        "alt.atheism",
        "comp.graphics",
        "comp.os.ms-windows.misc",
        "comp.sys.ibm.pc.hardware",
        "comp.sys.mac.hardware",
        "comp.windows.x",
        "misc.forsale",
        "rec.autos",
        "rec.motorcycles",
        "rec.sport.baseball",
        "rec.sport.hockey",
        "sci.crypt",
        "sci.electronics",
        "sci.med",
        "sci.space",
        "soc.religion.christian",
        "talk.politics.guns",
        "talk.politics.mideast",
        "talk.politics.misc",
        "talk.religion.misc",
    }
)
"""The twenty group names: data with exactly these labels are 20 Newsgroups."""


class NewsgroupsOptions(Options):
    """What only this data set has."""

    strip_newsgroups: bool = option(True, "Data", "Take headers, footers and quotes off 20 Newsgroups articles.")


_HEADER_LINE = re.compile(r"[A-Za-z][A-Za-z0-9-]*:\s")
_QUOTED_FROM = ("In article", "Quoted from", "|", ">")
_ATTRIBUTIONS = ("writes in", "writes:", "wrote:", "says:", "said:")


def is_newsgroups(label_names: Iterable[str]) -> bool:
    """Whether these labels are exactly the twenty groups."""
    return frozenset(label_names) == GROUPS


def is_raw(texts: Sequence[str]) -> bool:
    """Whether most texts still begin with a header line such as "From: …".

    Copies of the data set go round that are stripped already; stripped twice, an article loses its first paragraph.
    """
    return 2 * sum(_HEADER_LINE.match(text) is not None for text in texts) > len(texts)


def strip_article(text: str) -> str:
    """The article without header, footer and quotes; may be empty."""
    return without_quotes(without_footer(without_header(text)))


def without_header(text: str) -> str:
    """What follows the first blank line; "" if there is none."""
    end = text.find("\n\n")
    return "" if end < 0 else text[end + 2 :]


def without_footer(text: str) -> str:
    """The text above its last separator, a line that is blank or of hyphens only; all of it if there is none.

    Blank lines at either end of the text do not count as separators, and a separator on the first line cuts nothing.
    """
    lines = text.strip().split("\n")
    separators = [number for number, line in enumerate(lines) if not line.strip().strip("-")]
    return "\n".join(lines[: separators[-1]]) if separators and separators[-1] > 0 else text


def without_quotes(text: str) -> str:
    """The text without the lines that quote another article or announce a quotation."""
    return "\n".join(line for line in text.split("\n") if not _is_quote(line))


def _is_quote(line: str) -> bool:
    return line.startswith(_QUOTED_FROM) or any(phrase in line for phrase in _ATTRIBUTIONS)
