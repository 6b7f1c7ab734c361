"""A new kind of index: ranks the passages whose title is the query."""

from collections.abc import Mapping, Sequence

from services.retriever.indexes.base import BuildInputs, BuiltParts, OpenInputs
from services.retriever.ranking import RankedRows


class TitleRanker:
    """Ranks equal titles in row order."""

    def __init__(self, titles: list[str]) -> None:
        self._titles = titles

    def rank(self, queries: Sequence[str], top_k: int, filters: Mapping[str, str]) -> list[RankedRows]:
        found = [[row for row, title in enumerate(self._titles) if title == query][:top_k] for query in queries]
        return [RankedRows(rows, [1.0] * len(rows)) for rows in found]


class TitleKind:
    """An index of titles, one a line."""

    has_vectors = False

    def build(self, inputs: BuildInputs) -> BuiltParts:
        titles = (inputs.passages.passage(row).title for row in range(len(inputs.passages)))
        (inputs.folder / "titles.txt").write_text("\n".join(titles))
        return BuiltParts()

    def open(self, inputs: OpenInputs) -> dict[str, Sequence[TitleRanker]]:
        return {"titles": (TitleRanker((inputs.folder / "titles.txt").read_text().split("\n")),)}
