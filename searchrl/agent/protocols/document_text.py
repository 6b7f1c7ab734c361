"""How are documents written for a searcher?"""

from collections.abc import Sequence

from searchrl.domain.passage import Passage, SearchResult


def document_lines(results: Sequence[SearchResult]) -> str:
    """The form that both s3 and Search-R1 show during the loop; titles have the quotes of the corpus row."""
    return "".join(
        f'Doc {number}(Title: "{result.passage.title}") {result.passage.text}\n'
        for number, result in enumerate(results, start=1)
    )


def information_block(results: Sequence[SearchResult]) -> str:
    """Documents numbered from 1 between information tags."""
    return f"<information>{document_lines(results)}</information>"


def observation(results: Sequence[Sequence[SearchResult]]) -> str:
    """One information block per query, set off by blank lines."""
    return "".join(f"\n\n{information_block(found)}" for found in results) + "\n\n"


def legacy_observation(results: Sequence[Sequence[SearchResult]]) -> str:
    """As ``observation``, but stripped inside the tags, as published checkpoints saw it."""
    blocks = (f"\n\n<information>{document_lines(found).strip()}</information>" for found in results)
    return "".join(blocks) + "\n\n"


def distinct_by_id(passages: Sequence[Passage]) -> tuple[Passage, ...]:
    """The passages in order, without those whose id came before."""
    first: dict[str, Passage] = {}
    for passage in passages:
        first.setdefault(passage.id, passage)
    return tuple(first.values())
