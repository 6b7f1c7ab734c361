import pytest
from prometheus_client import CollectorRegistry

from searchrl.errors import InvalidRequest, Unavailable
from services.generator.engines.reader_engine import ReaderEngine
from services.generator.judging.judge import Judge, Verdict
from services.generator.judging.judge_prompt import CHOICES, INSTRUCTION, REMINDER, JudgeRequest, judge_messages
from services.generator.judging.verdict_cache import VerdictCache
from services.generator.metrics import GeneratorMetrics
from tests.fakes.scripted_engine import ScriptedEngine


def judge_with(engine: ScriptedEngine | ReaderEngine, cached: int = 100) -> Judge:
    return Judge(engine, VerdictCache(cached), GeneratorMetrics(CollectorRegistry()))


async def test_a_span_match_asks_nobody() -> None:
    engine = ScriptedEngine("no")
    verdict = await judge_with(engine).decide("Who?", "It was the Jon Reed.", ["Mia", "jon reed"])
    assert (verdict.correct, verdict.decided_by) == (True, "span")
    assert not engine.calls


async def test_an_empty_answer_is_wrong_without_asking() -> None:
    engine = ScriptedEngine("yes")
    verdict = await judge_with(engine).decide("Who?", " ", ["Jon Reed"])
    assert (verdict.correct, verdict.decided_by) == (False, "span")
    assert not engine.calls


@pytest.mark.parametrize(("reply", "correct"), [("yes", True), ("No.", False), ("**Yes**", True)])
async def test_without_a_span_the_judge_decides(reply: str, correct: bool) -> None:
    engine = ScriptedEngine(reply)
    judge = judge_with(engine)
    assert await judge.decide("Who?", "a Mr Reed", ["Jon Reed"]) == Verdict(correct, "judge", judge.version)
    ((messages, max_tokens, choices),) = engine.calls
    assert messages == judge_messages(JudgeRequest("Who?", "a Mr Reed", ("Jon Reed",)))
    assert messages[0].content == INSTRUCTION
    assert (max_tokens, choices) == (10, CHOICES)


async def test_an_unreadable_reply_is_asked_again_with_a_reminder() -> None:
    engine = ScriptedEngine("I know not", "no")
    assert not (await judge_with(engine).decide("Who?", "a Mr Reed", ["Jon Reed"])).correct
    assert [message.content for message in engine.calls[1][0][-2:]] == ["I know not", REMINDER]


async def test_two_unreadable_replies_are_an_outage_and_never_wrong() -> None:
    engine = ScriptedEngine("perhaps", "yes and no", "yes")
    judge = judge_with(engine)
    with pytest.raises(Unavailable, match="neither yes nor no"):
        await judge.decide("Who?", "a Mr Reed", ["Jon Reed"])
    assert (await judge.decide("Who?", "a Mr Reed", ["Jon Reed"])).correct  # nothing was remembered


async def test_a_failing_engine_is_an_error_and_never_wrong() -> None:
    with pytest.raises(Unavailable):
        await judge_with(ScriptedEngine(Unavailable("gone"))).decide("Who?", "a Mr Reed", ["Jon Reed"])


async def test_a_verdict_is_asked_for_once() -> None:
    engine = ScriptedEngine("yes", "no")
    judge = judge_with(engine)
    first = await judge.decide("Who?", "a Mr Reed", ["Jon Reed"])
    assert await judge.decide("Who?", "a Mr Reed", ["Jon Reed"]) == first
    assert len(engine.calls) == 1
    assert not (await judge.decide("Who?", "a Mr Reed", ["Jon Reed", "J. Reed"])).correct  # other golden answers


async def test_the_oldest_verdict_is_forgotten_first() -> None:
    cache = VerdictCache(2)
    for answer in ("a", "b"):
        cache.put(("q", answer, ("g",), "v"), True)
    cache.get(("q", "a", ("g",), "v"))
    cache.put(("q", "c", ("g",), "v"), False)
    assert cache.get(("q", "b", ("g",), "v")) is None
    assert cache.get(("q", "a", ("g",), "v")) is True
    assert cache.get(("q", "c", ("g",), "v")) is False
    assert cache.get(("q", "a", ("g",), "another judge")) is None


async def test_golden_answers_without_text_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="golden_answers"):
        await judge_with(ScriptedEngine("yes")).decide("Who?", "Reed", ["", " "])


async def test_the_version_names_the_model_and_the_wording() -> None:
    one, other = judge_with(ScriptedEngine("yes", model="a")), judge_with(ScriptedEngine("yes", model="b"))
    assert one.version.startswith("a@")
    assert one.version != other.version


async def test_the_reader_reads_our_request() -> None:
    """The small world's judge knows no paraphrase: what the span check misses, it calls wrong."""
    judge = judge_with(ReaderEngine())
    verdict = await judge.decide("Who directed it?", "Mia Stone", ["Jon Reed"])
    assert (verdict.correct, verdict.decided_by) == (False, "judge")
    reply = await ReaderEngine().chat(judge_messages(JudgeRequest("q", "I say Jon Reed", ("Jon Reed",))), max_tokens=1)
    assert reply.text == "yes"
