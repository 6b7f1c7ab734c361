"""How are documents written for a searcher?"""

from collections.abc import Sequence

from searchrl.domain.passage import Passage, SearchResult


def document_line(number: int, passage: Passage) -> str:
    """The form that both s3 and Search-R1 show during the loop; the title keeps the quotes of the corpus row."""
    return f'Doc {number}(Title: "{passage.title}") {passage.text}\n'


def information_block(results: Sequence[SearchResult]) -> str:
    """Documents numbered from 1 between information tags."""
    lines = (document_line(number, result.passage) for number, result in enumerate(results, start=1))
    return f"<information>{''.join(lines)}</information>"


def observation(results: Sequence[Sequence[SearchResult]]) -> str:
    """One information block per query, set off by blank lines."""
    return "".join(f"\n\n{information_block(found)}" for found in results) + "\n\n"


def distinct_by_id(passages: Sequence[Passage]) -> tuple[Passage, ...]:
    """The passages without those whose id came before."""
    return tuple({passage.id: passage for passage in reversed(passages)}[key] for key in dict.fromkeys(
        passage.id for passage in passages
    ))
