"""Provides the method ``search_r1``: the searcher writes the answer itself, without another model."""

from typing import Self

from searchrl.agent.types import StopReason
from searchrl.domain.answer import Answer, TextWritten
from searchrl.domain.question import Question
from searchrl.errors import InvalidRequest
from services.generator.methods.base import AnsweringMethod, Emit, MethodOptions, MethodParts
from services.generator.methods.s3 import SEARCH_R1, SearcherRun
from services.generator.prompting.context_answerer import DEFAULT_REPLY

_OUT_OF_TOKENS = frozenset({StopReason.TRUNCATED, StopReason.CONTEXT_OVERFLOW})


class SearchR1Method(AnsweringMethod):
    """Returns the searcher's own answer; empty if its rollout ends without one, which is a failure of the policy."""

    name = SEARCH_R1

    def __init__(self, run: SearcherRun) -> None:
        self._run = run
        self.defaults = run.defaults

    @classmethod
    def build(cls, parts: MethodParts) -> Self | None:
        run = parts.searcher
        return cls(run) if run is not None and run.profile.protocol == SEARCH_R1 else None

    async def answer(self, question: Question, options: MethodOptions, emit: Emit) -> Answer:
        if options.reply != DEFAULT_REPLY:
            raise InvalidRequest(
                "search_r1 writes the answer with the searcher, as it was trained: system messages, earlier turns, "
                "max_tokens and temperature do not apply; the searcher's temperature is searchrl.temperature"
            )
        gathered = await self._run.gather(question, options, emit)
        trajectory = gathered.trajectory
        text = (trajectory.answer or "").strip()
        if text:
            await emit(TextWritten(text))
        # Positions count from 1, as the documents are numbered in the prompt. A document may be cut in several blocks,
        # hence the dict below.
        cut = (block.results[position - 1].passage.id for block in trajectory.blocks for position in block.cut)
        written = Answer(
            text=text,
            documents=tuple(passage.id for passage in trajectory.documents),
            passages={passage.id: passage for passage in trajectory.documents},
            cut=tuple(dict.fromkeys(cut)),
            finish_reason="length" if trajectory.stop_reason in _OUT_OF_TOKENS else "stop",
        )
        return gathered.complete(written)
