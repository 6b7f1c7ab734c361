"""Converts answers, their events and verdicts between the domain and the wire."""

from dataclasses import replace

from searchrl.agent.types import DocumentsFound, DocumentsSelected, LoopEvent, QueriesIssued
from searchrl.contracts.v1 import generator_pb2 as pb
from searchrl.domain.answer import Answer, SearchStep, TextWritten, Usage, Verdict
from searchrl.domain.passage import Passage
from searchrl.errors import Unavailable
from searchrl.wire.record_codec import (
    passage_from_wire,
    passage_to_wire,
    provenance_from_wire,
    provenance_to_wire,
    result_to_wire,
)
from searchrl.wire.trajectory_codec import trajectory_from_wire, trajectory_to_wire


def step_to_wire(step: LoopEvent | TextWritten) -> pb.AnswerEvent:
    """Return one step as an event."""
    match step:
        case QueriesIssued(turn=turn, queries=queries):
            return pb.AnswerEvent(query=pb.QueryStep(turn=turn, queries=queries))
        case DocumentsFound(turn=turn, query=query, results=results):
            found = pb.DocumentsStep(turn=turn, query=query, results=map(result_to_wire, results))
            return pb.AnswerEvent(documents=found)
        case DocumentsSelected(turn=turn, passages=passages):
            ids = [passage.id for passage in passages]
            return pb.AnswerEvent(selection=pb.SelectionStep(turn=turn, passage_ids=ids))
        case TextWritten(text=text):
            return pb.AnswerEvent(tokens=pb.TokensStep(text=text))


def answer_to_wire(answer: Answer, *, with_trajectory: bool) -> pb.FinalStep:
    """Return the final event, with the trajectory only if it was requested."""
    trajectory = answer.trajectory if with_trajectory else None
    return pb.FinalStep(
        answer=answer.text,
        citations=answer.documents,
        # As the generator read them, possibly cut; the events of the searches hold the complete texts.
        documents=[passage_to_wire(answer.passages[name]) for name in answer.documents],
        searches=answer.searches,
        prompt_tokens=answer.usage.prompt_tokens,
        completion_tokens=answer.usage.completion_tokens,
        seconds=answer.seconds,
        stop_reason=answer.stop_reason,
        trajectory=None if trajectory is None else trajectory_to_wire(trajectory),
        context_tokens=answer.usage.context_tokens,
        policy_version=answer.policy_version,
        provenance=provenance_to_wire(answer.provenance),
        searcher_prompt_tokens=answer.usage.searcher_prompt_tokens,
        searcher_completion_tokens=answer.usage.searcher_completion_tokens,
        finish_reason=answer.finish_reason,
        cut=answer.cut,
        left_out=answer.left_out,
    )


class AnswerEvents:
    """Collects the events of one answer into its record."""

    def __init__(self) -> None:
        self._steps: list[SearchStep] = []
        self._passages: dict[str, Passage] = {}
        self._final: pb.FinalStep | None = None

    def add(self, event: pb.AnswerEvent) -> None:
        kind = event.WhichOneof("event")
        if kind == "documents":
            found = [passage_from_wire(result.passage) for result in event.documents.results]
            self._passages.update((passage.id, passage) for passage in found)
            step = SearchStep(event.documents.turn, event.documents.query, tuple(passage.id for passage in found))
            self._steps.append(step)
        # Queries and pieces of text are not collected: a query comes again with its documents, and the final event has
        # the complete text.
        elif kind == "selection":
            self._select(tuple(event.selection.passage_ids))
        elif kind == "final":
            self._final = event.final

    def answer(self) -> Answer:
        """Return the record of the finished answer.

        Raises:
            Unavailable: the final event is missing.
        """
        final = self._final
        if final is None:
            raise Unavailable("the answer's stream ended before its final event")
        given = [passage_from_wire(passage) for passage in final.documents]
        self._passages.update((passage.id, passage) for passage in given)
        return Answer(
            text=final.answer,
            documents=tuple(passage.id for passage in given),
            passages=self._passages,
            cut=tuple(final.cut),
            left_out=tuple(final.left_out),
            finish_reason=final.finish_reason,
            usage=Usage(
                prompt_tokens=final.prompt_tokens,
                completion_tokens=final.completion_tokens,
                context_tokens=final.context_tokens,
                searcher_prompt_tokens=final.searcher_prompt_tokens,
                searcher_completion_tokens=final.searcher_completion_tokens,
            ),
            provenance=provenance_from_wire(final.provenance),
            steps=tuple(self._steps),
            searches=final.searches,
            stop_reason=final.stop_reason,
            policy_version=final.policy_version,
            seconds=final.seconds,
            trajectory=trajectory_from_wire(final.trajectory) if final.HasField("trajectory") else None,
        )

    def _select(self, ids: tuple[str, ...]) -> None:
        """Apply a selection to the latest block, the only one that the search loop lets it claim."""
        # Not by turn: the initial block and the first search's block both have turn 0.
        if self._steps:
            latest = self._steps[-1]
            kept = tuple(identifier for identifier in ids if identifier in latest.found)
            self._steps[-1] = replace(latest, selected=kept)


def context_answer_to_wire(answer: Answer) -> pb.AnswerFromContextResponse:
    """Return an answer from given passages, which its receiver has: they are not sent back."""
    return pb.AnswerFromContextResponse(
        answer=answer.text,
        prompt_tokens=answer.usage.prompt_tokens,
        completion_tokens=answer.usage.completion_tokens,
        model=answer.provenance.generator_model,
        provenance=provenance_to_wire(answer.provenance),
        finish_reason=answer.finish_reason,
        cut=answer.cut,
        left_out=answer.left_out,
    )


def context_answer_from_wire(response: pb.AnswerFromContextResponse) -> Answer:
    return Answer(
        text=response.answer,
        cut=tuple(response.cut),
        left_out=tuple(response.left_out),
        finish_reason=response.finish_reason,
        usage=Usage(response.prompt_tokens, response.completion_tokens),
        provenance=provenance_from_wire(response.provenance),
    )


def verdict_to_wire(verdict: Verdict) -> pb.JudgeResponse:
    return pb.JudgeResponse(
        correct=verdict.correct,
        decided_by=verdict.decided_by,
        judge_version=verdict.judge_version,
        prompt_tokens=verdict.prompt_tokens,
        completion_tokens=verdict.completion_tokens,
    )


def verdict_from_wire(response: pb.JudgeResponse) -> Verdict:
    return Verdict(
        correct=response.correct,
        decided_by=response.decided_by,
        judge_version=response.judge_version,
        prompt_tokens=response.prompt_tokens,
        completion_tokens=response.completion_tokens,
    )
