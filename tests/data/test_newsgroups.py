"""20 Newsgroups articles lose headers, footers and quotes exactly as in scikit-learn."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_a2.data.newsgroups import GROUPS, strip_article, without_footer, without_header, without_quotes
from lora_a2.data.sources import load_data


@pytest.mark.parametrize(
    ("article", "left"),
    [
        ("From: a\nSubject: b\n\nBody.\n\nName\nAddress\n", "Body."),
        ("From: a\n\nBody.\n--\nName", "Body."),
        ("From: a\n\n> old\nIn article <1> x@y writes:\nBody.", "Body."),
        ("From: a", ""),
        ("From: a\n\n", ""),
        ("From: a\n\n--\nOnly a signature", "--\nOnly a signature"),
        ("From: a\n\nOne line", "One line"),
    ],
)
def test_articles_are_stripped(article: str, left: str) -> None:
    assert strip_article(article) == left


@given(st.text(alphabet="ab>|-: \n\tIn article wrote", max_size=60))
@settings(max_examples=200, deadline=None)
def test_stripping_agrees_with_scikit_learn_on_any_text(text: str) -> None:
    reference = pytest.importorskip("sklearn.datasets._twenty_newsgroups")
    assert without_header(text) == reference.strip_newsgroup_header(text)
    assert without_footer(text) == reference.strip_newsgroup_footer(text)
    assert without_quotes(text) == reference.strip_newsgroup_quoting(text)


def test_stripping_agrees_with_scikit_learn_on_the_real_articles(shared: Path) -> None:
    reference = pytest.importorskip("sklearn.datasets._twenty_newsgroups")
    folder = str(shared / "data" / "20newsgroups")
    raw, data = load_data(folder, strip_newsgroups=False), load_data(folder)
    assert (len(data.train), len(data.test)) == (11_314, 7_532)
    assert set(data.label_names) == GROUPS
    for before, after in ((raw.train, data.train), (raw.test, data.test)):
        texts = map(reference.strip_newsgroup_header, before.texts)
        texts = map(reference.strip_newsgroup_quoting, map(reference.strip_newsgroup_footer, texts))
        assert after.texts == tuple(texts)
