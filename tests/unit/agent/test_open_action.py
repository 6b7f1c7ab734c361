"""The set of actions is open: a protocol can define an action that the search loop does not know."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from searchrl.agent.profile import SearcherProfile
from searchrl.agent.protocols import PROTOCOLS
from searchrl.agent.protocols.base import ParsedTurn, StepResult
from searchrl.agent.protocols.s3 import S3Protocol
from searchrl.agent.search_loop import search_loop
from searchrl.agent.types import Limits, Sampling, StopReason
from searchrl.domain.passage import Passage, SearchResult
from searchrl.domain.question import Question
from searchrl.domain.trajectory import InformationBlock, Trajectory
from searchrl.errors import ConfigurationError, Unavailable
from tests.fakes.in_memory_searcher import InMemorySearcher
from tests.fakes.scripted_policy import CharacterTokenizer, ScriptedPolicy

LIBRARY = {"d1": Passage("d1", "Long", "page one " * 4 + "the needle")}
PAGE_CHARACTERS = 20  # so short that the needle is not on the first page


@dataclass(frozen=True)
class OpenDocument:
    """An action that shows one page of a document."""

    document_id: str
    page: int
    name: str = "open"

    async def step(self, blocks: Sequence[InformationBlock]) -> StepResult:
        if self.document_id == "outage":
            raise Unavailable("document store is down")
        document = LIBRARY[self.document_id]
        start = self.page * PAGE_CHARACTERS
        page = Passage(f"{document.id}#{self.page}", document.title, document.text[start : start + PAGE_CHARACTERS])
        block = InformationBlock(f"open {document.id}", (SearchResult(page, 1.0, 1),))
        return StepResult(f"<page>{page.text}</page>", (block,))


@dataclass(frozen=True)
class FindInDocuments:
    """An action that reports which documents shown so far contain a word; it retrieves none."""

    word: str
    name: str = "find"

    async def step(self, blocks: Sequence[InformationBlock]) -> StepResult:
        texts = [result.passage.text for block in blocks for result in block.results]
        return StepResult(f"<found>{sum(self.word in text for text in texts)}</found>")


class OpeningProtocol(S3Protocol):
    """s3 with ``<open>id page</open>`` and ``<find>word</find>``."""

    stop: tuple[str, ...] = ("</query>", "</open>", "</find>")

    def parse_turn(self, text: str, latest_block: InformationBlock | None) -> ParsedTurn:
        opened = re.search(r"<open>(\S+) (\d+)</open>", text)
        if opened:
            return ParsedTurn(OpenDocument(opened[1], int(opened[2])))
        found = re.search(r"<find>(.+?)</find>", text)
        return ParsedTurn(FindInDocuments(found[1])) if found else super().parse_turn(text, latest_block)


async def roll_out(turns: list[str]) -> tuple[Trajectory, ScriptedPolicy]:
    """Run the search loop with the opening protocol and scripted turns."""
    policy = ScriptedPolicy(turns, CharacterTokenizer())
    trajectory = await search_loop(
        Question("q", "where is the needle?"),
        policy=policy,
        searcher=InMemorySearcher([]),
        tokenizer=CharacterTokenizer(),
        protocol=OpeningProtocol("{question}"),
        limits=Limits(max_searches=3),
        sampling=Sampling(),
        rollout_id="r",
    )
    return trajectory, policy


async def test_a_protocol_can_open_pages_and_find_words_without_a_change_to_the_loop() -> None:
    done = "<important_info>[1]</important_info><search_complete>True</search_complete>"
    trajectory, policy = await roll_out(["<open>d1 1</open>", "<find>needle</find>", done])
    assert [turn.action for turn in trajectory.turns] == ["open", "find", "finish"]
    assert [passage.id for passage in trajectory.documents] == ["d1#1"]
    observed = CharacterTokenizer().decode(policy.calls[2].prompt_ids)
    assert "<page>" in observed and "<found>0</found>" in observed
    assert trajectory.searches == 0
    assert trajectory.well_formed


def test_a_protocol_with_a_line_in_the_registry_can_be_named_in_searcher_json(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="unknown search protocol 'open'"):
        SearcherProfile.from_json('{"protocol": "open"}')
    monkeypatch.setitem(PROTOCOLS, "open", {"strict": OpeningProtocol})
    profile = SearcherProfile.from_json('{"protocol": "open", "template": "{question}"}')
    assert isinstance(profile.build_protocol(), OpeningProtocol)
    with pytest.raises(ConfigurationError, match="unknown mode 'legacy'; known: strict"):
        SearcherProfile.from_json('{"protocol": "open", "mode": "legacy"}')


async def test_further_actions_use_up_the_same_budget() -> None:
    trajectory, policy = await roll_out(["<open>d1 0</open>"] * 9)
    assert len(policy.calls) == 4
    assert trajectory.stop_reason == StopReason.MAX_SEARCHES


async def test_an_outage_in_a_further_action_is_an_outage() -> None:
    with pytest.raises(Unavailable, match="document store"):
        await roll_out(["<open>outage 0</open>"])
