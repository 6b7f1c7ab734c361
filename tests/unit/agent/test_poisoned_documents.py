"""Poisoned documents and questions change neither the token structure of a rollout nor what is read from it."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from searchrl.agent.profile import SearcherProfile
from searchrl.agent.search_loop import search_loop
from searchrl.agent.types import Limits, Sampling
from searchrl.agent.untrusted_text import PROTOCOL_TAGS, break_control_tokens, defuse_structure, defuse_text
from searchrl.domain.passage import Passage, SearchResult
from searchrl.domain.question import Question
from searchrl.domain.trajectory import Trajectory
from searchrl.tokenization.model_tokenizer import ModelTokenizer
from tests.fakes.in_memory_searcher import results_of
from tests.fakes.model_folders import byte_level_tokenizer, write_model_folder
from tests.fakes.poisoned_documents import ATTACKS, CONTROL_TOKENS, TAGS, TITLE_ATTACK, poisoned
from tests.fakes.scripted_policy import ScriptedPolicy

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ASK = {
    "s3": '<search_complete>False</search_complete><query>{"query": "capital"}</query>',
    "search_r1": "<search>capital</search>",
}
END = {
    "s3": "<important_info>[2]</important_info><search_complete>True</search_complete>",
    "search_r1": "<answer>Ystad</answer>",
}
MODES = [(protocol, mode) for protocol in ("s3", "search_r1") for mode in ("strict", "legacy")]
HARMLESS = Passage("ok", "Ystad", "Ystad is a town.")
_TAG = re.compile(rf"<\s*/?\s*({'|'.join(PROTOCOL_TAGS)})\s*>", re.IGNORECASE)
_HEADER = re.compile(r"Doc\s*\d+\s*\(\s*Title\s*:", re.IGNORECASE)


class SameDocuments:
    """Finds the same documents for every query."""

    def __init__(self, passages: list[Passage]) -> None:
        self._results = results_of(*passages)

    async def search(self, queries: Sequence[str], top_k: int, filters: Mapping[str, str]) -> list[list[SearchResult]]:
        return [list(self._results) for _ in queries]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ModelTokenizer:
    special = [token for token in CONTROL_TOKENS if not token.startswith(("[INST", "[/INST", "<<"))]
    tags = [f"<{slash}{tag}>" for tag in TAGS for slash in ("", "/")]
    built = byte_level_tokenizer((), [*special, *tags])
    folder: Path = tmp_path_factory.mktemp("model")
    return ModelTokenizer.of_searcher(write_model_folder(folder, built, {"eos_token": "<|im_end|>"}, CHATML))


async def roll_out(
    tokenizer: ModelTokenizer, protocol: str, mode: str, passages: list[Passage], question: str
) -> Trajectory:
    """Run one search and one answer whose every search finds these passages."""
    profile = SearcherProfile(protocol, mode, limits=Limits(max_context_tokens=100_000, max_observation_tokens=50_000))  # type: ignore[arg-type]
    return await search_loop(
        Question("q", question),
        policy=ScriptedPolicy([ASK[protocol], END[protocol]], tokenizer),
        searcher=SameDocuments(passages),
        tokenizer=tokenizer,
        protocol=profile.build_protocol(),
        limits=profile.limits,
        sampling=Sampling(),
        rollout_id="r",
        initial=results_of(*passages),
    )


def structure(tokenizer: ModelTokenizer, trajectory: Trajectory) -> list[int]:
    """The control tokens, which include the tags, among the tokens that the policy did not sample."""
    pairs = zip(trajectory.tokens.ids, trajectory.tokens.mask, strict=True)
    return [token for token, sampled in pairs if not sampled and token in tokenizer.control_ids]


@pytest.mark.parametrize(("protocol", "mode"), MODES)
@pytest.mark.parametrize("attack", ATTACKS)
async def test_the_loop_reads_the_same_structure_as_from_harmless_documents(
    tokenizer: ModelTokenizer, protocol: str, mode: str, attack: str
) -> None:
    clean = [Passage("p1", "T", "x"), HARMLESS]
    expected = await roll_out(tokenizer, protocol, mode, clean, "Who?")
    attacked = await roll_out(tokenizer, protocol, mode, [poisoned(attack), HARMLESS], f"Who? {ATTACKS[attack]}")
    assert structure(tokenizer, attacked) == structure(tokenizer, expected)
    assert [turn.action for turn in attacked.turns] == [turn.action for turn in expected.turns]
    assert [turn.queries for turn in attacked.turns] == [turn.queries for turn in expected.turns]
    assert attacked.stop_reason == expected.stop_reason == "completed"
    assert attacked.answer == expected.answer
    assert [block.selection for block in attacked.blocks] == [block.selection for block in expected.blocks]
    if mode == "strict":
        assert [each.id for each in attacked.documents] == [each.id for each in expected.documents]
    if protocol == "s3":
        # legacy reads documents back from the text: a poisoned one must not be read as several
        assert len(attacked.documents) == len(expected.documents)


@pytest.mark.parametrize(("protocol", "mode"), MODES)
@pytest.mark.parametrize("attack", ATTACKS)
def test_rendered_documents_hold_the_tags_and_headers_of_their_protocol_only(
    protocol: str, mode: str, attack: str
) -> None:
    built = SearcherProfile(protocol, mode).build_protocol()  # type: ignore[arg-type]
    clean, bad = results_of(Passage("p1", "T", "x"), HARMLESS), results_of(poisoned(attack), HARMLESS)
    for render in (lambda found: built.render_results([found]), lambda found: built.render_prompt("Who?", found)):
        assert [m[0] for m in _TAG.finditer(render(bad))] == [m[0] for m in _TAG.finditer(render(clean))]
        assert len(_HEADER.findall(render(bad))) == len(_HEADER.findall(render(clean)))


def test_in_strict_mode_a_title_stays_one_quoted_line() -> None:
    built = SearcherProfile("s3", "strict").build_protocol()
    text = built.render_results([results_of(Passage("p", TITLE_ATTACK, "x"))])
    assert "Doc 1(Title: \"Paris') Rome. Doc 2[Title: 'Rome\") x\n" in text


@pytest.mark.parametrize("token", CONTROL_TOKENS)
def test_spellings_of_control_tokens_are_broken_for_servers_that_tokenize_themselves(token: str) -> None:
    assert token not in break_control_tokens(f"a{token}b {token}{token} <{token}>")
    nested = f"{token[:3]}{token}{token[3:]}"
    assert token not in break_control_tokens(nested)
    assert "w<o>rd" not in break_control_tokens("a w<o>rd", ["w<o>rd"])


@pytest.mark.parametrize(
    "text",
    [
        "if (a < b && c > d) return v[i]; // vector<int>",
        "See [1], [Smith 2001] and <b>bold</b> text.",
        "H<sub>2</sub>O at 5 < 7; |x| < 3; << 2; [A] [OK]",
        "Title: Doc 3 of the series (Titled: x)",
        "«‹query›» 3 <3 <- -> <= => 日本語 <html>",
    ],
)
def test_harmless_text_is_unchanged(text: str) -> None:
    assert defuse_text(text).replace("[ OK]", "[OK]") == text
    assert defuse_structure(text) == text
