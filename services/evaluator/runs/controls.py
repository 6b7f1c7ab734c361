"""Adds the controls that show whether a benchmark measures search at all."""

from collections.abc import Sequence

from searchrl.domain.question import Question
from services.evaluator.runs.evaluation_run import MethodSpec
from services.evaluator.runs.generator_port import PassageLookup
from services.evaluator.store.run_store import RunStore

CLOSED_BOOK = "direct"
ORACLE_DOCUMENTS = "oracle"
RANDOM_RETRIEVER = "random_retriever"
CONTROL_METHODS = (CLOSED_BOOK, ORACLE_DOCUMENTS, RANDOM_RETRIEVER)


def add_controls(methods: Sequence[MethodSpec], served: Sequence[str]) -> tuple[MethodSpec, ...]:
    """The methods, and every control that the generator serves and that is not already among them."""
    asked = {method.method for method in methods} | {method.name for method in methods}
    controls = [MethodSpec(name) for name in CONTROL_METHODS if name in served and name not in asked]
    return (*methods, *controls)


async def record_missing_gold(
    run_id: str, questions: Sequence[Question], passages: PassageLookup, store: RunStore
) -> None:
    """Find out which gold passages the corpus lacks: questions that need them cannot be answered from it."""
    gold = list(dict.fromkeys(name for question in questions for name in question.gold_passage_ids))
    if gold:
        missing = await passages.find_missing(gold)
        store.set_missing_gold(run_id, len(gold), sorted(missing))
