"""What is a question?"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Question:
    """A question with the answers that count as right.

    ``filters`` are metadata equalities that every search for this question carries; ``source`` names its collection.
    """

    id: str
    text: str
    golden_answers: tuple[str, ...] = ()
    source: str = ""
    filters: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    gold_passage_ids: tuple[str, ...] = ()
