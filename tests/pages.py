"""Pages of reports read back."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any

HOSTILE = "</script><script>document.title='broken'</script><img src=x onerror=document.title='broken'>"
"""Stands in the labels and, in part, in the names of clients."""


class Reader(HTMLParser):
    """The page's headings, cells, and embedded specifications."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.specs: list[dict[str, Any]] = []
        self.addresses: list[str | None] = []
        self._open = ""
        self._json = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._open = tag
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "action")]
        self._json = tag == "script" and (dict(attrs).get("id") or "").startswith("spec-")

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self._open, []).append(data)
        if self._json:
            self.specs.append(json.loads(data))
            self._json = False
