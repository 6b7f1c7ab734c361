"""The figures of what a rollout found, against values computed manually."""

import pytest

from searchrl.domain.passage import Passage, SearchResult
from searchrl.domain.question import Choice, Question
from searchrl.domain.trajectory import InformationBlock, Trajectory
from searchrl.rewards.retrieval_quality import QualityMeter, RetrievalQuality, findable_answers, gold_recall

TEXTS = {"a": "Ann works for Acme.", "b": "Acme is in Oslo.", "c": "Bo sings.", "d": "Oslo is a town."}
QUESTION = Question("q", "Where does Ann work?", ("Oslo",), gold_passage_ids=("a", "b"))


def rollout(*ids: str, selection: tuple[int, ...] | None = (1,)) -> Trajectory:
    documents = tuple(Passage(id, id, TEXTS[id]) for id in ids)
    shown = tuple(SearchResult(document, 1.0, rank + 1) for rank, document in enumerate(documents))
    return Trajectory("q", blocks=[InformationBlock("query", shown, selection)], documents=documents)


def test_gold_passages_and_documents_with_the_answer_are_relevant() -> None:
    meter = QualityMeter(QUESTION)
    # a is gold, d has the answer, c is neither: 2 of 3 selected documents; 1 of 2 gold passages was found
    assert meter.measure(rollout("a", "c", "d")) == RetrievalQuality(True, 0.5, 3, 2)
    assert meter.measure(rollout("a", "c")) == RetrievalQuality(False, 0.5, 2, 1)
    assert meter.measure(rollout()) == RetrievalQuality(False, 0.0, 0, 0)


def test_without_gold_passages_the_answer_alone_makes_a_document_relevant() -> None:
    measured = QualityMeter(Question("q", "Where does Ann work?", ("Oslo",))).measure(rollout("a", "b"))
    assert measured == RetrievalQuality(True, None, 2, 1)


def test_a_protocol_without_selections_has_no_selection_precision() -> None:
    measured = QualityMeter(QUESTION).measure(rollout("a", "b", selection=None))
    assert measured == RetrievalQuality(True, 1.0, None, None)


def test_answers_that_occur_in_any_text_are_not_looked_for() -> None:
    polar = Question("q", "Is Oslo a town?", ("yes", "True"))
    assert findable_answers(polar) == ()
    assert QualityMeter(polar).measure(rollout("d")) == RetrievalQuality(None, None, None, None)
    options = Question("q", "Where?", ("B", "Oslo"), choices=(Choice("A", "Rome"), Choice("B", "Oslo")))
    assert findable_answers(options) == ("Oslo",)


@pytest.mark.parametrize(
    ("documents", "gold", "recall"),
    [
        (("a", "b", "c"), ("a", "b"), 1.0),
        (("a", "c"), ("a", "b"), 0.5),
        ((), ("a",), 0.0),
        (("a", "a"), ("a", "a", "b"), 0.5),  # a gold passage counts once
        (("a",), (), None),
    ],
)
def test_gold_recall(documents: tuple[str, ...], gold: tuple[str, ...], recall: float | None) -> None:
    assert gold_recall(documents, gold) == recall
