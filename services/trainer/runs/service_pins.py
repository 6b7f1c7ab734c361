"""What the services say of themselves when a run starts: rewards of another index, LLM or judge are other rewards."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from searchrl.agent.ports import Searcher
from searchrl.domain.provenance import UNKNOWN_PROVENANCE
from searchrl.domain.question import Question
from searchrl.errors import PERMANENT_KINDS, ConfigurationError, ServiceError
from services.trainer.rewards.build_reward import read_baseline
from services.trainer.rewards.reward_kinds import ContextAnswer, Generator, Verdict
from services.trainer.rollouts.refusals import raise_if_run_ends
from services.trainer.run_config import RunConfig

_QUESTIONS_TRIED = 5
INDEX, MODEL, PROMPT, JUDGE = "index generation", "frozen LLM", "prompt of the frozen LLM", "judge"


class Services(Protocol):
    """What a run reaches outside its process."""

    @property
    def searcher(self) -> Searcher: ...
    @property
    def generator(self) -> Generator | None: ...
    @property
    def index_generation(self) -> Callable[[Question], Awaitable[str]] | None: ...


async def pin_services(config: RunConfig, services: Services, questions: Sequence[Question]) -> dict[str, str]:
    """Ask each service once; compare the baselines with the answers.

    What a service does not tell, or cannot because there is no index behind the searcher, is not compared.

    Returns:
        By what it is called in messages: the index generation, the frozen LLM, its prompt, the judge.

    Raises:
        ServiceError: a service is away.
        ConfigurationError: a service refuses this run, or the baselines were made with something else.
    """
    pins: dict[str, str] = {}
    name_index = services.index_generation
    tried = questions[:_QUESTIONS_TRIED] if name_index is not None else ()
    for asked, question in enumerate(tried, start=1):
        assert name_index is not None
        try:
            pins = await _ask(services, name_index, question)
            break
        except ServiceError as error:
            raise_if_run_ends("the first call of this run", error)
            # A question of its own may be refused; all of the first ones are no accident.
            if error.kind not in PERMANENT_KINDS or asked == len(tried):
                raise
    known = {name: value for name, value in pins.items() if value}
    check_baseline(config, questions, known)
    return known


def check_baseline(config: RunConfig, questions: Sequence[Question], pins: dict[str, str]) -> None:
    """Raises:
    ConfigurationError: the baseline file lacks a question, or was made with another index, LLM, prompt or judge.
    """
    baseline = read_baseline(config.reward, (question.id for question in questions))
    if baseline is None:
        return
    expected = {
        "index_generation": pins.get(INDEX),
        "generator_model": pins.get(MODEL),
        "template_hash": pins.get(PROMPT),
        "judge_version": pins.get(JUDGE) if "+" not in baseline.version.judge_version else None,
    }
    try:
        baseline.require(**{name: value for name, value in expected.items() if value})
    except ServiceError as error:
        raise ConfigurationError(f"reward.baseline_file: {error}") from error


async def _ask(
    services: Services, index_generation: Callable[[Question], Awaitable[str]], question: Question
) -> dict[str, str]:
    pins = {INDEX: await index_generation(question)}
    if services.generator is None:
        return pins
    answer, verdict = await ask_generator(services.searcher, services.generator, question)
    return pins | {
        MODEL: getattr(answer, "model", ""),
        PROMPT: getattr(answer, "provenance", UNKNOWN_PROVENANCE).template_hash,
        JUDGE: getattr(verdict, "judge_version", ""),
    }


async def ask_generator(searcher: Searcher, generator: Generator, question: Question) -> tuple[ContextAnswer, Verdict]:
    """Use everything that a reward needs once: a search, the frozen LLM and the judge.

    Raises:
        ServiceError: one of them failed.
    """
    found = await searcher.search([question.retrieval_query], 1, question.filters)
    passages = [result.passage for result in found[0]]
    answer = await generator.answer_from_context(question.generator_text, passages)
    verdict = await generator.judge(
        question.generator_text, answer.answer or "probe", question.golden_answers, question.choices
    )
    return answer, verdict
