"""A stored run whose numbers can be computed manually."""

from dataclasses import replace

import pytest

from searchrl.domain.answer import Answer, SearchStep, Usage, Verdict
from searchrl.domain.passage import Passage
from searchrl.domain.question import Question
from services.evaluator.records.episode import Episode
from services.evaluator.records.evaluation_run import EvaluationState, MethodSpec, RunRecord, RunSpec
from services.evaluator.store.run_store import RunStore, stamp_created

QUESTIONS = [
    Question(
        f"q{number}", f"Who leads {number}?", ("Ann",), metadata={"hops": str(1 + number % 2)}, gold_passage_ids=("g",)
    )
    for number in range(4)
]
# Right answers by column; q3 of s3 is a failure.
RIGHT = {"rag": {"q0"}, "s3": {"q0", "q1", "q2"}, "direct": set(), "oracle": {"q0", "q1", "q2"}}


def store_run(store: RunStore, run_id: str, right: dict[str, set[str]]) -> None:
    spec = RunSpec(run_id, "q.jsonl", tuple(MethodSpec(name) for name in right))
    store.create_run(stamp_created(RunRecord(spec, spec.methods, "f" * 64, 4, index_generation="g1")), QUESTIONS)
    gold, noise = Passage("g", "Gold", "Ann leads."), Passage("n", "<b>Noise</b>", "x" * 1000)
    for label, ids in right.items():
        for question in QUESTIONS:
            correct = question.id in ids
            step = SearchStep(0, question.text, ("g", "n"), ("g",) if correct else ())
            episode = Episode(
                label=label,
                question_id=question.id,
                answer=Answer(
                    "Ann" if correct else "unknown",
                    documents=("g",) if correct else ("n",),
                    usage=Usage(context_tokens=10),
                    steps=(step, SearchStep(1, "more & more", ("n",))),
                    searches=1,
                    seconds=0.1,
                ),
                verdict=Verdict(correct, "", "j1"),
                exact_match=float(correct),
                f1=float(correct),
                gold_recall=float(correct),
            )
            store.append(run_id, episode, [gold, noise])
    store.close_run(replace(store.run(run_id), state=EvaluationState.FINISHED))


@pytest.fixture
def stored(store: RunStore) -> RunStore:
    store_run(store, "r1", RIGHT)
    store.append("r1", Episode(label="s3", question_id="q3", failure="unavailable", error="gone")).result()
    return store
