"""Calls each service once as a run will, and compares the baselines with the answers."""

from collections.abc import Awaitable, Callable, Sequence

from searchrl.domain.passage import Passage
from searchrl.domain.question import Question
from searchrl.errors import PERMANENT_KINDS, ConfigurationError, ErrorKind, ServiceError
from searchrl.platform.findings import Finding, FindingState, finding_of
from searchrl.platform.request_context import deadline
from services.trainer.runs.service_pins import (
    GENERATOR_MODEL,
    INDEX,
    JUDGE,
    PROMPT,
    Services,
    ask_judge,
    call_until_answered,
    check_baseline,
    pin_answer,
)
from services.trainer.settings import RunConfig

MAX_SECONDS = 20.0
"""Deadline of a service's first call: a large model may still load or compile something then."""
Call = Callable[[Question], Awaitable[str]]
_KEY_KINDS = (ErrorKind.UNAUTHENTICATED, ErrorKind.FORBIDDEN)


async def check_services(
    config: RunConfig, services: Services, questions: Sequence[Question], naive_top_k: int | None
) -> list[Finding]:
    """Return one finding each for the retriever, the frozen LLM, the judge and, if the reward compares, the baselines.

    Args:
        naive_top_k: passages that naive RAG must have read; None if unknown: the baselines are not compared.
    """
    pins: dict[str, str] = {}
    passages: dict[str, list[Passage]] = {}
    answers: dict[str, str] = {}
    generator = services.generator

    async def search(question: Question) -> str:
        found = await services.searcher.search([question.retrieval_query], 1, question.filters)
        passages[question.id] = [result.passage for result in found[0]]
        pins[INDEX] = await services.index_generation(question) if services.index_generation else ""
        return _describe(pins, INDEX)

    async def answer(question: Question) -> str:
        assert generator is not None
        given = await generator.answer_from_context(question.generator_text, passages.get(question.id, []))
        answers[question.id] = given.text
        pins.update(pin_answer(given))
        return _describe(pins, GENERATOR_MODEL, PROMPT)

    async def judge(question: Question) -> str:
        assert generator is not None
        verdict = await ask_judge(generator, question, answers.get(question.id, ""))
        pins[JUDGE] = verdict.judge_version
        return _describe(pins, JUDGE)

    calls: list[tuple[str, str, Call]] = [("retriever", "retriever", search)]
    if generator is not None:
        calls += [("generator", "generator", answer), ("judge", "generator", judge)]
    # One after the other: the frozen LLM reads what the search found, and the judge is given its answer.
    findings = [await _call_service(subject, role, config, questions, call) for subject, role, call in calls]
    if config.reward.baselines is not None and naive_top_k is not None:
        known = {name: value for name, value in pins.items() if value}
        findings.append(finding_of("pins", lambda: _compare(config, questions, known, naive_top_k), ""))
    return findings


def _describe(pins: dict[str, str], *names: str) -> str:
    return ", ".join(f"{name} {pins[name] or 'without a name'}" for name in names)


def _compare(config: RunConfig, questions: Sequence[Question], pins: dict[str, str], naive_top_k: int) -> str:
    check_baseline(config, questions, pins, naive_top_k)
    return f"the baselines were made with the same {', '.join(pins)}" if pins else "no service named what it uses"


async def _call_service(
    subject: str,
    role: str,
    config: RunConfig,
    questions: Sequence[Question],
    call: Call,
) -> Finding:
    address = getattr(config.services, role)
    try:
        with deadline(min(config.services.timeout_seconds, MAX_SECONDS)):
            return Finding(subject, FindingState.OK, f"{address} answers: {await call_until_answered(questions, call)}")
    except (ConfigurationError, ServiceError) as error:
        # A refusal that ends a run arrives as a ConfigurationError; the kind, which decides the advice, is that of its
        # cause.
        cause = error.__cause__ if isinstance(error, ConfigurationError) else error
        kind = cause.kind if isinstance(cause, ServiceError) else ErrorKind.INVALID
        if kind in PERMANENT_KINDS:
            advice = "set services.key_file" if kind in _KEY_KINDS else f"correct the run or the {role}"
            return Finding(
                subject, FindingState.FAILED, f"{address} refuses this run ({kind}): {cause or error}", advice
            )
        advice = f"start it (searchrl up), or correct services.{role}; a run would wait for it"
        reason = str(error).removeprefix(f"{address}: ")
        return Finding(subject, FindingState.FAILED, f"{address} does not answer: {reason}", advice)
