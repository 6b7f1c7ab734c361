"""Records which index, LLM, prompt and judge a run uses: rewards of others cannot be compared."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from searchrl.agent.types import Searcher
from searchrl.clients.generator_client import GeneratorClient
from searchrl.domain.answer import Answer, Verdict
from searchrl.domain.question import Question
from searchrl.errors import PERMANENT_KINDS, ConfigurationError, ServiceError
from services.trainer.rewards.generation import HOW_TO_REBUILD, read_baseline
from services.trainer.rollouts.refusals import raise_if_run_ends
from services.trainer.settings import RunConfig

_QUESTIONS_TRIED = 5  # a single question may be refused for itself; this many refusals in a row mean another cause
Found = TypeVar("Found")
INDEX, GENERATOR_MODEL, PROMPT, JUDGE = "index generation", "frozen LLM", "prompt of the frozen LLM", "judge"
DOCUMENT_BUDGET, ANSWER_BUDGET = "token budget of the documents", "token budget of the answer"
TEMPERATURE = "temperature of the frozen LLM"


@dataclass(frozen=True, slots=True)
class Services:
    """The services that a run calls.

    Attributes:
        generator: None if the reward needs none.
        index_generation: searches for a question and returns the generation of the index that answered; None if there
            is no index behind the searcher.
    """

    searcher: Searcher
    generator: GeneratorClient | None
    index_generation: Callable[[Question], Awaitable[str]] | None = None


async def pin_services(
    config: RunConfig, services: Services, questions: Sequence[Question], naive_top_k: int
) -> dict[str, str]:
    """Ask each service once, and compare the baselines with the answers.

    What a service does not report, for example because there is no index behind the searcher, is not compared.

    Args:
        naive_top_k: passages that naive RAG must have read in the baselines.

    Returns:
        The index generation, the frozen LLM, its prompt and budgets, and the judge, each by its name in messages.

    Raises:
        ServiceError: a service is unavailable.
        ConfigurationError: a service refuses this run, or the baselines were made with something else.
    """
    name_index = services.index_generation
    pins = await call_until_answered(questions, lambda one: _pin(services, name_index, one)) if name_index else {}
    known = {name: value for name, value in pins.items() if value}
    check_baseline(config, questions, known, naive_top_k)
    return known


async def call_until_answered(questions: Sequence[Question], ask: Callable[[Question], Awaitable[Found]]) -> Found:
    """Return a service's answer to the first question that it does not refuse.

    Raises:
        ServiceError: a service is unavailable, or refused each of the first questions.
        ConfigurationError: a service refuses this run.
    """
    tried = questions[:_QUESTIONS_TRIED]
    for question in tried[:-1]:
        try:
            return await ask(question)
        except ServiceError as error:
            raise_if_run_ends("the first call of this run", error)
            if error.kind not in PERMANENT_KINDS:
                raise
    try:
        return await ask(tried[-1])  # if this one is refused as well, the cause is not the question
    except ServiceError as error:
        raise_if_run_ends("the first call of this run", error)
        raise


def check_baseline(config: RunConfig, questions: Sequence[Question], pins: dict[str, str], naive_top_k: int) -> None:
    """Raises:
    ConfigurationError: the baseline file is not of these questions, or was made with another index, LLM, prompt,
        judge, retrieval mode, number of passages or token budget.
    """
    if config.reward.baselines is None:
        return
    baseline = read_baseline(config.reward.baselines, questions)
    temperature = pins.get(TEMPERATURE)
    try:
        baseline.require(
            index_generation=pins.get(INDEX),
            generator_model=pins.get(GENERATOR_MODEL),
            template_hash=pins.get(PROMPT),
            # With several judges, one call does not show which of them decide.
            judge_version=pins.get(JUDGE) if "+" not in baseline.version.judge_version else None,
            # The index's default mode has no name to compare.
            mode=config.services.retrieval_mode or None,
            top_k=naive_top_k,
            max_context_tokens=_parse_number(pins.get(DOCUMENT_BUDGET)),
            max_answer_tokens=_parse_number(pins.get(ANSWER_BUDGET)),
            temperature=None if temperature is None else float(temperature),
        )
    except ServiceError as error:
        rebuild = f"{HOW_TO_REBUILD}, with --top-k {naive_top_k} (reward.baseline_top_k)"
        raise ConfigurationError(f"reward.baseline_file: {error}; {rebuild}") from error


def _parse_number(text: str | None) -> int | None:
    return None if text is None else int(text)


async def _pin(
    services: Services, index_generation: Callable[[Question], Awaitable[str]], question: Question
) -> dict[str, str]:
    pins = {INDEX: await index_generation(question)}
    if services.generator is None:
        return pins
    answer, verdict = await ask_generator(services.searcher, services.generator, question)
    return pins | pin_answer(answer) | {JUDGE: verdict.judge_version}


def pin_answer(answer: Answer) -> dict[str, str]:
    """Return the model, prompt and budgets that an answer of the frozen LLM reports."""
    made = answer.provenance
    pins = {GENERATOR_MODEL: made.generator_model, PROMPT: made.template_hash}
    if made.max_context_tokens:  # a generator that reports its budgets reports its temperature, too
        pins |= {
            DOCUMENT_BUDGET: str(made.max_context_tokens),
            ANSWER_BUDGET: str(made.max_answer_tokens),
            TEMPERATURE: f"{made.temperature:g}",
        }
    return pins


async def ask_generator(searcher: Searcher, generator: GeneratorClient, question: Question) -> tuple[Answer, Verdict]:
    """Call each service that a reward needs once: a search, the frozen LLM and the judge.

    Raises:
        ServiceError: one of them failed.
    """
    found = await searcher.search([question.retrieval_query], 1, question.filters)
    passages = [result.passage for result in found[0]]
    answer = await generator.answer_from_context(question.generator_text, passages)
    return answer, await ask_judge(generator, question, answer.text)


async def ask_judge(generator: GeneratorClient, question: Question, answer: str) -> Verdict:
    """Return the verdict on an answer, which may be empty.

    Raises:
        ServiceError: the judge failed.
    """
    # Rewards count an empty answer as wrong without the judge, so the judge is not given one here either.
    return await generator.judge(question.generator_text, answer or "probe", question.golden_answers, question.choices)
