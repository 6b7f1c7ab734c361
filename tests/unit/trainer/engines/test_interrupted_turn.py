"""A turn in parts is the turn in one: its tokens, its limit and its stop strings."""

from searchrl.agent.types import Generation, Sampling
from services.trainer.engines.sampling import StopDetector
from services.trainer.engines.vllm.turn import InterruptedTurn, continued_seed
from tests.fakes.scripted_policy import CharacterTokenizer

TOKENIZER = CharacterTokenizer()


def part(text: str, reason: str, version: int) -> Generation:
    ids = tuple(TOKENIZER.encode(text))
    return Generation(ids, tuple(-float(token) for token in ids), (version,) * len(ids), reason)


def turn(stop: tuple[str, ...] = (), max_tokens: int = 10) -> InterruptedTurn:
    return InterruptedTurn([1, 2], Sampling(max_tokens=max_tokens, stop=stop, seed=7), StopDetector(TOKENIZER, 200))


def test_the_next_part_continues_after_the_tokens_with_a_seed_of_its_own() -> None:
    whole = turn()
    assert (whole.prompt_ids, whole.sampling.seed) == ((1, 2), 7)
    assert whole.add(part("abc", "aborted", 4)) is None
    assert whole.prompt_ids == (1, 2, *TOKENIZER.encode("abc"))
    assert (whole.sampling.max_tokens, whole.sampling.seed) == (7, continued_seed(7, 3))
    found = whole.add(part("de", "stop", 5))
    assert found == Generation(
        tuple(TOKENIZER.encode("abcde")),
        tuple(-float(token) for token in TOKENIZER.encode("abcde")),
        (4, 4, 4, 5, 5),
        "stop",
    )


def test_a_stop_string_over_two_parts_ends_the_turn_at_its_last_token() -> None:
    whole = turn(stop=("</s>",))
    assert whole.add(part("ab</", "aborted", 1)) is None
    found = whole.add(part("s>xyz", "length", 2))
    assert found is not None
    assert TOKENIZER.decode(found.ids) == "ab</s>"
    assert (found.finish_reason, found.versions) == ("stop", (1, 1, 1, 1, 2, 2))
    assert len(found.logprobs) == 6


def test_a_stop_string_that_a_later_interruption_hides_is_found_too() -> None:
    whole = turn(stop=("!",))
    assert whole.add(part("a", "aborted", 1)) is None
    found = whole.add(part("b!c", "aborted", 2))
    assert found is not None
    assert TOKENIZER.decode(found.ids) == "ab!"


def test_an_interruption_at_the_limit_ends_the_turn() -> None:
    found = turn(max_tokens=3).add(part("abc", "aborted", 1))
    assert found is not None
    assert found.finish_reason == "length"
