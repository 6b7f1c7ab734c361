"""Ranks passages by BM25 with tantivy, which indexes the terms that our analyzer makes."""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import orjson
import tantivy

from searchrl.errors import ConfigurationError
from services.retriever.corpora.corpus_row import filter_term
from services.retriever.indexes.analyzer import (
    ANALYZER_VERSION,
    Analyzer,
    Language,
    analyzer_for,
    detect_language,
)
from services.retriever.indexes.base import BuildInputs, BuiltParts, OpenInputs, check_count
from services.retriever.indexes.manifest import DamagedIndex
from services.retriever.ranking import RankedRows, Ranker

BM25_FOLDER = "bm25"
BODY, META, ROW = "body", "meta", "row"
DESCRIPTION_FILE = "bm25.json"
_ROWS_PER_PROGRESS = 1_000  # a smaller number reports more often, in the end once per row
# Enough to see most ties completely at once; 0.1 ms more than asking for three hits.
_FIRST_HITS = 128
# From 131 rows to the 21 million of a Wikipedia corpus in five steps; a larger factor overshoots more, and then the
# bisection takes longer.
_BOUND_GROWTH = 16
# A corpus of which one passage in a hundred is CJK has about ten in the sample.
_LANGUAGE_SAMPLE = 1_000


class IndexableRow(NamedTuple):
    """What BM25 needs of a passage: the text to analyze and the metadata to filter by."""

    text: str
    metadata: Mapping[str, str]


class _Hit(NamedTuple):
    """One result of tantivy, with the number of its row."""

    score: float
    row: int


class Bm25Index:
    """BM25 with tantivy's fixed constants k1 = 1.2 and b = 0.75.

    Document lengths are stored in one byte, as in Lucene. Statistics are those of the entire corpus, even with a
    filter. Rows are numbered in the order they were added; equal scores are ranked by row number.
    """

    def __init__(self, index: tantivy.Index, analyzer: Analyzer, passages: int) -> None:
        self._analyzer = analyzer
        self._schema = index.schema
        self._searcher = index.searcher()
        self._passages = passages

    @classmethod
    def build(
        cls,
        folder: Path,
        rows: Iterable[IndexableRow],
        *,
        language: Language = "english",
        memory_bytes: int = 512_000_000,
        progress: Callable[[int], None] | None = None,
    ) -> "Bm25Index":
        """Write a new index of ``rows`` into ``folder`` (created, must be empty) and open it.

        Args:
            memory_bytes: tantivy's buffer, which it writes as one segment when full; a larger one gives fewer segments
                to merge and to search.
            progress: receives the number of rows added so far, every thousand rows.
        """
        folder.mkdir(parents=True, exist_ok=True)
        index = tantivy.Index(_schema(), str(folder))
        # One thread: each would fill segments of its own from a part of the buffer, which gives more segments to merge.
        writer = index.writer(heap_size=memory_bytes, num_threads=1)
        analyzer = analyzer_for(language)
        count = 0
        for count, row in enumerate(rows, start=1):
            writer.add_document(_document(count - 1, analyzer.terms(row.text), row.metadata))
            if progress and count % _ROWS_PER_PROGRESS == 0:
                progress(count)
        writer.commit()
        # A merge that runs on would change the files while the manifest records their checksums. tantivy holds its
        # locks until the writer is deleted.
        writer.wait_merging_threads()
        del writer, index
        for lock in folder.glob(".tantivy-*.lock"):
            lock.unlink()  # left behind by the writer; it would become a file of the generation
        description = {"language": language, "analyzer_version": ANALYZER_VERSION, "passages": count}
        (folder / DESCRIPTION_FILE).write_bytes(orjson.dumps(description))
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path) -> "Bm25Index":
        """Map an index written by ``build``.

        Raises:
            DamagedIndex: the folder holds no usable index.
            ConfigurationError: its terms were made by another version of the analyzer.
        """
        try:
            description = orjson.loads((folder / DESCRIPTION_FILE).read_bytes())
            index = _open_unchanged(folder)
        except (OSError, ValueError) as error:
            raise DamagedIndex(f"{folder} holds no readable BM25 index ({error}); rebuild it") from error
        if description["analyzer_version"] != ANALYZER_VERSION:
            raise ConfigurationError(
                f"{folder} was built with analyzer version {description['analyzer_version']}, "
                f"this program has {ANALYZER_VERSION}; rebuild it"
            )
        return cls(index, analyzer_for(description["language"]), description["passages"])

    @property
    def passages(self) -> int:
        """Number of rows in the index."""
        return self._passages

    def rank(self, queries: Sequence[str], top_k: int, filters: Mapping[str, str]) -> list[RankedRows]:
        """Return up to ``top_k`` rows per query that share a term with it and satisfy ``filters``, best first."""
        restriction = self._restriction(filters)
        return [self._rank_one(query, top_k, restriction) for query in queries]

    def _rank_one(self, query: str, top_k: int, restriction: list[tuple[tantivy.Occur, tantivy.Query]]) -> RankedRows:
        counts = Counter(self._analyzer.terms(query))
        if not counts or self._passages == 0:
            return RankedRows([], [])
        scored = tantivy.Query.boolean_query(
            # In sorted order, so that the order of a query's words cannot change a score in its last bits.
            [(tantivy.Occur.Should, self._term_query(term, count)) for term, count in sorted(counts.items())]
        )
        if restriction:
            scored = tantivy.Query.boolean_query([(tantivy.Occur.Must, scored), *restriction])
        return self._collect(scored, top_k)

    def _collect(self, query: tantivy.Query, top_k: int) -> RankedRows:
        """The best rows. Tantivy orders equal scores by their place in its segments, so a tie at the cut that was not
        seen completely needs another search.
        """
        # One more than asked for shows whether the cut falls into a tie.
        limit = min(max(top_k + 1, _FIRST_HITS), self._passages)
        hits = self._hits(query, limit)
        is_whole = len(hits) < limit or limit == self._passages or hits[top_k - 1].score != hits[-1].score
        if not is_whole:
            cut = hits[top_k - 1].score
            better = [hit for hit in hits if hit.score > cut]
            hits = better + self._first_with_score(query, cut, top_k - len(better), top_k)
        best = sorted((-hit.score, hit.row) for hit in hits)[:top_k]
        return RankedRows([row for _, row in best], [-negated for negated, _ in best])

    def _first_with_score(self, query: tantivy.Query, score: float, wanted: int, top_k: int) -> list[_Hit]:
        """The ``wanted`` lowest rows with this score, of which there may be millions.

        Searches the rows below a bound only. The bound grows, then is bisected, until the rows below it contain at
        least ``wanted`` of that score and few enough hits to see all of them. Moving the bound by one row adds at most
        one hit, so such a bound exists between one that is too low and one that is too high.

            rows  0 ......... 131 ......... 1,113 ......... 2,096
                  too few             bisected            too many hits
        """
        limit = top_k + _FIRST_HITS
        too_few, too_many = 0, self._passages + 1
        bound = limit
        while True:
            hits = self._hits(_below(self._schema, query, bound), limit)
            tied = [hit for hit in hits if hit.score == score]
            sees_all = len(hits) < limit or hits[-1].score < score
            if sees_all and (len(tied) >= wanted or bound >= self._passages):
                return sorted(tied, key=lambda hit: hit.row)[:wanted]
            if sees_all:
                too_few = bound
            else:
                too_many = bound
            bound = (
                min(bound * _BOUND_GROWTH, self._passages) if too_many > self._passages else (too_few + too_many) // 2
            )

    def _hits(self, query: tantivy.Query, limit: int) -> list[_Hit]:
        # The number of all matches is not needed, so they need not be counted.
        found = self._searcher.search(query, limit=limit, count=False).hits
        rows = cast(list[int], self._searcher.fast_field_values(ROW, [address for _, address in found]))
        return [_Hit(cast(float, score), row) for (score, _), row in zip(found, rows, strict=True)]

    def _term_query(self, term: str, count: int) -> tantivy.Query:
        query = tantivy.Query.term_query(self._schema, BODY, term, "freq")
        return query if count == 1 else tantivy.Query.boost_query(query, float(count))

    def _restriction(self, filters: Mapping[str, str]) -> list[tuple[tantivy.Occur, tantivy.Query]]:
        return [
            (
                tantivy.Occur.Must,
                # A constant of zero, because a filter must not add to the score.
                tantivy.Query.const_score_query(
                    tantivy.Query.term_query(self._schema, META, filter_term(key, value), "basic"), 0.0
                ),
            )
            for key, value in sorted(filters.items())
        ]


class Bm25Kind:
    """Indexes of BM25 alone."""

    has_vectors = False

    def build(self, inputs: BuildInputs) -> BuiltParts:
        """Analyze and index all passages."""
        passages, language = inputs.passages, inputs.plan.language
        if language == "auto":
            # From all parts of the corpus: files are often sorted by language or source.
            sample = range(0, len(passages), max(1, len(passages) // _LANGUAGE_SAMPLE))
            language = detect_language(passages.row(number).contents for number in sample)
        rows = (passages.row(number) for number in range(len(passages)))
        total = len(passages)
        Bm25Index.build(
            inputs.folder / BM25_FOLDER,
            (IndexableRow(row.contents, row.passage.metadata) for row in rows),
            language=language,
            progress=lambda done: inputs.progress("bm25", done, total),
        )
        inputs.progress("bm25", total, total)
        return BuiltParts(language=language)

    def open(self, inputs: OpenInputs) -> dict[str, Sequence[Ranker]]:
        index = Bm25Index.open(inputs.folder / BM25_FOLDER)
        check_count(inputs, "BM25 index", index.passages)
        return {"bm25": (index,)}


def _open_unchanged(folder: Path) -> tantivy.Index:
    """Open without writing into ``folder``: tantivy creates lock files beside the index, so it opens a folder of links.

    That temporary folder can be removed immediately, because the searcher has mapped every file by then; a lock file
    that tantivy writes at that moment may remain.
    """
    with tempfile.TemporaryDirectory(prefix="bm25-", ignore_cleanup_errors=True) as view:
        for file in folder.absolute().iterdir():
            (Path(view) / file.name).symlink_to(file)
        index = tantivy.Index.open(view)
        # The default policy watches the folder for commits, but the files never change, and this folder is removed.
        index.config_reader(reload_policy="manual")
        index.reload()
        return index


def _below(schema: tantivy.Schema, query: tantivy.Query, bound: int) -> tantivy.Query:
    """The query for rows below ``bound``, with the same scores."""
    rows = tantivy.Query.range_query(schema, ROW, tantivy.FieldType.Integer, 0, bound, include_upper=False)
    return tantivy.Query.boolean_query(
        [(tantivy.Occur.Must, query), (tantivy.Occur.Must, tantivy.Query.const_score_query(rows, 0.0))]
    )


def _schema() -> tantivy.Schema:
    builder = tantivy.SchemaBuilder()
    # Terms arrive analyzed and joined by spaces. Positions are for phrase queries, which we do not send; nothing is
    # stored, because the passage store has the texts. The row is a column (fast), read for hits and for ``_below``.
    builder.add_text_field(BODY, tokenizer_name="whitespace", index_option="freq")
    builder.add_text_field(META, tokenizer_name="raw", index_option="basic")
    builder.add_integer_field(ROW, fast=True)
    return builder.build()


def _document(row: int, terms: Sequence[str], metadata: Mapping[str, str]) -> tantivy.Document:
    document = tantivy.Document()
    document.add_integer(ROW, row)
    document.add_text(BODY, " ".join(terms))
    for key, value in metadata.items():
        document.add_text(META, filter_term(key, value))
    return document
