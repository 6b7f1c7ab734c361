"""Streamed text without thoughts: any chunking shows what the complete reply contains."""

import random

from hypothesis import given
from hypothesis import strategies as st

from searchrl.domain.thoughts import strip_thoughts
from services.generator.engines.event_stream import EventBuffer, StreamedText, split_data

WORDS = st.text(alphabet="ab <>[]/◁▷\nTHINKthink.é", max_size=12).filter(
    lambda text: strip_thoughts(text) == text.strip()
)
TAGS = st.sampled_from(
    [
        ("<think>", "</think>"),
        ("<THINKING>", "</thinking >"),
        ("[THINK]", "[/THINK]"),
        ("◁think▷", "◁/think▷"),
        ("<|START_THINKING|>", "<|END_THINKING|>"),
        ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
        ("<|channel>thought\n", "<channel|>"),
    ]
)


def in_chunks(text: str, seed: int) -> list[str]:
    """The text, split at random places."""
    chosen = random.Random(seed)
    pieces: list[str] = []
    while text:
        size = chosen.randint(1, 5)
        pieces.append(text[:size])
        text = text[size:]
    return pieces


def shown(text: str, seed: int, *, hold_back: bool) -> str:
    stream = StreamedText(hold_back=hold_back)
    return "".join([*map(stream.add, in_chunks(text, seed)), stream.finish()])


@given(before=WORDS, thought=WORDS, answer=WORDS, tags=TAGS, seed=st.integers(), is_closed=st.booleans())
def test_any_chunking_of_an_opened_thought_shows_the_text_of_the_complete_reply(
    before: str, thought: str, answer: str, tags: tuple[str, str], seed: int, is_closed: bool
) -> None:
    text = f"{before}{tags[0]}{thought}{tags[1] + answer if is_closed else ''}"
    assert shown(text, seed, hold_back=False) == strip_thoughts(text)


@given(thought=WORDS, answer=WORDS, tags=TAGS, seed=st.integers())
def test_a_stream_that_is_held_back_shows_nothing_of_a_thought_that_is_only_closed(
    thought: str, answer: str, tags: tuple[str, str], seed: int
) -> None:
    text = f"{thought}{tags[1]}{answer}"
    assert shown(text, seed, hold_back=True) == strip_thoughts(text)


@given(text=WORDS, seed=st.integers())
def test_a_reply_without_thoughts_is_shown_completely(text: str, seed: int) -> None:
    assert shown(text, seed, hold_back=False) == shown(text, seed, hold_back=True) == text.strip()


def test_text_comes_as_soon_as_it_is_no_tag() -> None:
    stream = StreamedText()
    assert [stream.add(piece) for piece in ("Ro", "me ", "<", "b", " c")] == ["Ro", "me", "", "", " <b c"]


@given(
    events=st.lists(st.sampled_from([b"data: {}", b": ping", b"event: x\ndata: 1", b"data: a\r\ndata: b"]), max_size=6),
    end=st.sampled_from([b"\n\n", b"\r\n\r\n", b"\r\r"]),
    rest=st.sampled_from([b"", b"data: {", b"data: 1\n"]),
    seed=st.integers(),
)
def test_any_chunking_of_a_stream_gives_complete_events_and_every_byte(
    events: list[bytes], end: bytes, rest: bytes, seed: int
) -> None:
    content = b"".join(event + end for event in events) + rest
    whole = EventBuffer()
    given_parts = [whole.add(piece.encode("latin-1")) for piece in in_chunks(content.decode("latin-1"), seed)]
    assert all(part.endswith(end) for part in given_parts if part)
    assert b"".join(given_parts) + whole.rest() == content


def test_the_data_of_events_is_joined_by_line() -> None:
    assert split_data(b": ping\n\ndata: 1\r\n\r\nevent: x\ndata: 2\ndata: 3\n\n") == [b"1", b"2\n3"]
