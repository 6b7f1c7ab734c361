"""BM25 against its formula, filters, ties and damaged folders."""

import math
import unicodedata
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import orjson
import pytest
import tantivy
from hypothesis import given, settings
from hypothesis import strategies as st

from searchrl.errors import ConfigurationError
from services.retriever.indexes.bm25 import Bm25Index, IndexableRow
from services.retriever.ranking import RankedRows

K1, B = 1.2, 0.75  # fixed in tantivy


def build(folder: Path, texts: list[str], worlds: list[str] | None = None) -> Bm25Index:
    worlds = worlds or ["w"] * len(texts)
    rows = [IndexableRow(text, {"world": world}) for text, world in zip(texts, worlds, strict=True)]
    return Bm25Index.build(folder, rows, memory_bytes=20_000_000)


def formula(texts: list[str], query: str) -> RankedRows:
    """BM25 by Robertson's formula, with Lucene's idf; lengths below 40 are stored exactly."""
    documents = [Counter(text.split()) for text in texts]
    lengths = [len(text.split()) for text in texts]
    average = sum(lengths) / len(lengths)
    scored = []
    for row, (counts, length) in enumerate(zip(documents, lengths, strict=True)):
        score = 0.0
        for term, repeats in Counter(query.split()).items():
            containing = sum(term in document for document in documents)
            idf = math.log(1 + (len(texts) - containing + 0.5) / (containing + 0.5))
            frequency = counts[term]
            score += repeats * idf * frequency * (K1 + 1) / (frequency + K1 * (1 - B + B * length / average))
        if score:
            scored.append((-score, row))
    scored.sort()
    return RankedRows([row for _, row in scored], [-score for score, _ in scored])


words = st.sampled_from(["red", "blue", "green", "dog", "cat", "x1", "x2"])
texts = st.lists(st.lists(words, min_size=1, max_size=12).map(" ".join), min_size=1, max_size=15)


@settings(max_examples=40, deadline=None)
@given(texts, st.lists(words, min_size=1, max_size=5).map(" ".join), st.integers(1, 10))
def test_scores_are_those_of_the_formula(corpus: list[str], query: str, top_k: int) -> None:
    with TemporaryDirectory() as folder:
        (found,) = build(Path(folder), corpus).rank([query], top_k, {})
    expected = formula(corpus, query)
    assert found.scores == pytest.approx(expected.scores[:top_k], rel=1e-5)
    # equal documents have equal scores, so the rows agree wherever the formula's rounding leaves no doubt
    exact = {row: score for row, score in zip(*expected, strict=True)}
    assert [exact[row] for row in found.rows] == pytest.approx(expected.scores[:top_k], rel=1e-5)


@settings(max_examples=25, deadline=None)
@given(texts, st.lists(st.lists(words, min_size=1, max_size=4).map(" ".join), min_size=1, max_size=6))
def test_a_batch_gives_what_single_queries_give(corpus: list[str], queries: list[str]) -> None:
    with TemporaryDirectory() as folder:
        index = build(Path(folder), corpus)
        batched = index.rank(queries, 4, {})
        assert batched == [index.rank([query], 4, {})[0] for query in queries]


def test_equal_scores_are_in_row_order_also_at_the_cut(tmp_path: Path) -> None:
    index = build(tmp_path / "index", ["same words here"] * 50)
    for top_k in (1, 3, 49, 50, 80):
        (found,) = index.rank(["words"], top_k, {})
        assert found.rows == list(range(min(top_k, 50)))


def test_ties_stay_in_row_order_in_an_index_of_many_segments(tmp_path: Path) -> None:
    rows = [IndexableRow(f"same words here {'filler ' * 30}", {}) for _ in range(60_000)]
    index = Bm25Index.build(tmp_path / "index", rows, memory_bytes=15_000_000)
    (found,) = index.rank(["words"], 5, {})
    assert found.rows == [0, 1, 2, 3, 4]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([0, 0, 0, 0, 1, 2, 3]), min_size=600, max_size=600), st.integers(1, 300))
def test_ties_are_in_row_order_wherever_they_are_cut(kinds: list[int], top_k: int) -> None:
    # four texts, so four scores, each with more rows than one search looks at, and better rows among them anywhere
    texts = ["dog", "dog dog", "dog cat", "cat"]
    with TemporaryDirectory() as folder:
        index = build(Path(folder), [texts[kind] for kind in kinds])
        (everything,) = index.rank(["dog"], 600, {})
        (found,) = index.rank(["dog"], top_k, {})
    expected = sorted(zip([-score for score in everything.scores], everything.rows, strict=True))
    assert everything.rows == [row for _, row in expected]
    assert found == RankedRows(everything.rows[:top_k], everything.scores[:top_k])


def test_a_word_of_every_passage_is_answered_without_listing_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = build(tmp_path / "index", ["invoice number"] * 5_000 + ["invoice invoice"] + ["invoice number"] * 5_000)
    limits: list[int] = []
    search = Bm25Index._hits

    def watch(self: Bm25Index, query: tantivy.Query, limit: int) -> object:
        limits.append(limit)
        return search(self, query, limit)

    monkeypatch.setattr(Bm25Index, "_hits", watch)
    (found,) = index.rank(["invoice"], 3, {})
    assert found.rows == [5_000, 0, 1]
    # far fewer than the 10,001 passages that contain the word
    assert max(limits) < 300
    assert len(limits) < 20


def test_a_filter_keeps_rows_of_that_world_only_and_leaves_scores_alone(tmp_path: Path) -> None:
    corpus = ["amber falcon", "amber river", "amber falcon director", "stone"]
    index = build(tmp_path / "index", corpus, ["w1", "w2", "w2", "w1"])
    everywhere, inside = index.rank(["amber falcon"], 4, {})[0], index.rank(["amber falcon"], 4, {"world": "w2"})[0]
    assert inside.rows == [2, 1]
    assert dict(zip(*inside, strict=True)).items() <= dict(zip(*everywhere, strict=True)).items()
    assert index.rank(["amber"], 4, {"world": "w3"}) == [RankedRows([], [])]
    assert index.rank(["amber"], 4, {"world": "w1", "other": "x"}) == [RankedRows([], [])]


def test_a_key_and_value_cannot_be_read_as_another_pair(tmp_path: Path) -> None:
    rows = [IndexableRow("amber", {"a": "b=c"}), IndexableRow("amber", {"a=b": "c"})]
    index = Bm25Index.build(tmp_path / "index", rows, memory_bytes=20_000_000)
    assert index.rank(["amber"], 5, {"a": "b=c"})[0].rows == [0]
    assert index.rank(["amber"], 5, {"a=b": "c"})[0].rows == [1]


@pytest.mark.parametrize("query", ["", "the of and", "?!", "unknownword"])
def test_a_query_without_known_terms_finds_nothing(tmp_path: Path, query: str) -> None:
    assert build(tmp_path / "index", ["some text"]).rank([query], 3, {}) == [RankedRows([], [])]


def test_a_repeated_query_term_counts_twice(tmp_path: Path) -> None:
    index = build(tmp_path / "index", ["red dog", "blue dog"])
    once, twice = index.rank(["red", "red red"], 1, {})
    assert twice.scores[0] == pytest.approx(2 * once.scores[0])


def test_opening_leaves_the_folder_as_it_is(tmp_path: Path) -> None:
    build(tmp_path / "index", ["red dog"])
    before = sorted(path.name for path in (tmp_path / "index").iterdir())
    index = Bm25Index.open(tmp_path / "index")
    assert sorted(path.name for path in (tmp_path / "index").iterdir()) == before
    assert index.rank(["dogs"], 1, {})[0].rows == [0]


def test_terms_of_other_rules_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    build(folder, ["red dog"])
    description = orjson.loads((folder / "bm25.json").read_bytes())
    (folder / "bm25.json").write_bytes(orjson.dumps({**description, "analyzer_version": 0}))
    with pytest.raises(ConfigurationError, match="analyzer version 0"):
        Bm25Index.open(folder)


def test_a_folder_without_an_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no readable BM25 index"):
        Bm25Index.open(tmp_path)


def test_a_decomposed_corpus_is_found_by_composed_queries_and_the_reverse(tmp_path: Path) -> None:
    corpus = ["Nguyễn Hiếu sinh ở Huế", "서울은 대한민국의 수도이다", "Beyoncé", "ประเทศไทยมีประชากรมาก"]
    rows = [IndexableRow(unicodedata.normalize("NFD", text), {}) for text in corpus]
    index = Bm25Index.build(tmp_path / "index", rows, language="cjk", memory_bytes=20_000_000)
    for row, word in enumerate(["Huế", "서울", "beyoncé", "ประชากร"]):
        for form in ("NFC", "NFD"):
            assert index.rank([unicodedata.normalize(form, word)], 1, {})[0].rows == [row]
