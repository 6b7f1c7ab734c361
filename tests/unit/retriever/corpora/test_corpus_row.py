"""The layouts of corpus rows that are read, and those that are refused."""

import pytest

from searchrl.domain.passage import Passage
from services.retriever.corpora.corpus_row import RowError, parse_row


@pytest.mark.parametrize(
    ("line", "passage", "contents"),
    [
        (b'{"id": "0", "contents": "\\"Ti\\"\\nte xt"}', Passage("0", "Ti", "te xt"), '"Ti"\nte xt'),
        (b'{"id": 7, "contents": "one line"}', Passage("7", "", "one line"), "one line"),
        (b'{"id": "a", "title": "T", "text": "x"}', Passage("a", "T", "x"), '"T"\nx'),
        (b'{"id": "a", "text": "x"}', Passage("a", "", "x"), "x"),
        (
            b'{"id": "m1", "title": "T", "content": "body", "contents": "T. body"}',
            Passage("m1", "T", "body"),
            "T. body",
        ),
        (
            b'{"_id": "b1", "title": "T", "text": "x", "metadata": {"url": "u", "year": 1999, "tags": [1], "n": null}}',
            Passage("b1", "T", "x", {"url": "u", "year": "1999", "tags": "[1]"}),
            '"T"\nx',
        ),
        (
            b'{"id": 1.0, "title": 1984, "text": "A novel.", "metadata": "{\\"year\\": 1949.0, \\"film\\": true}"}',
            Passage("1", "1984", "A novel.", {"year": "1949", "film": "true"}),
            '"1984"\nA novel.',
        ),
        (b'{"id": 2, "text": "x", "metadata": []}', Passage("2", "", "x"), "x"),
        (b'{"id": 3, "text": "x", "metadata": ""}', Passage("3", "", "x"), "x"),
        ('{"id": "Hue\u0302\u0301", "text": "x"}'.encode(), Passage("Huế", "", "x"), "x"),
        (
            b'{"id": "w", "contents": "\\"T\\"\\nx", "metadata": {"world": "w017"}}',
            Passage("w", "T", "x", {"world": "w017"}),
            '"T"\nx',
        ),
    ],
)
def test_known_layouts_are_read(line: bytes, passage: Passage, contents: str) -> None:
    row = parse_row(line)
    assert (row.passage, row.contents) == (passage, contents)
    assert row.document["id"] == passage.id
    assert row.document["contents"] == contents


def test_the_document_keeps_every_field_of_the_row() -> None:
    document = parse_row(b'{"id": "a", "title": "T", "text": "x", "source": {"page": 3}}').document
    assert document == {"id": "a", "title": "T", "text": "x", "source": {"page": 3}, "contents": '"T"\nx'}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not JSON"),
        (b'{"id": "a", "contents": "\xff"}', "not UTF-8 at byte 25"),
        (b"[1]", "not a JSON object"),
        (b'{"contents": "x"}', "no id"),
        (b'{"id": "", "contents": "x"}', "no id"),
        (b'{"id": true, "contents": "x"}', "no id"),
        (b'{"id": "a"}', "no text"),
        (b'{"id": "a", "contents": 5}', "'contents' is not a string"),
        (b'{"id": "a", "contents": " \\n"}', "the text is empty"),
        (b'{"id": "a", "text": "x", "metadata": [1]}', "'metadata' is not an object"),
        (b'{"id": "a", "text": "x", "metadata": "wiki"}', "'metadata' is a text"),
        (b'{"id": 1.5, "text": "x"}', "no id"),
        (b'{"id": "a", "title": true, "text": "x"}', "'title' is not a string"),
    ],
)
def test_an_unusable_line_says_why(line: bytes, reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        parse_row(line)
