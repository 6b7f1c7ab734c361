"""The shipped warm-start model agrees with the code that reads it."""

import asyncio
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from searchrl.agent.profile import SearcherProfile
from searchrl.agent.search_loop import search_loop
from searchrl.domain.passage import SearchResult
from searchrl.domain.question import Question
from searchrl.domain.trajectory import Trajectory
from searchrl.small_world.files import WARM_START_FOLDER
from searchrl.small_world.reader import answer_from_passages
from searchrl.small_world.world import SmallWorld
from searchrl.tokenization.model_tokenizer import ModelTokenizer
from services.trainer.engines.torch_engine import TorchEngine
from services.trainer.small_world.tokenizer import build_tokenizer, save_tokenizer
from services.trainer.small_world.untrained_model import SMALL_WORLD_PROFILE


class Bm25Searcher:
    """The retriever's BM25 over a few unseen worlds."""

    def __init__(self, worlds: Sequence[SmallWorld], folder: Path) -> None:
        from services.retriever.indexes.bm25 import Bm25Index, IndexableRow

        self._passages = [passage for world in worlds for passage in world.passages]
        self._index = Bm25Index.build(folder, (IndexableRow(p.contents, p.metadata) for p in self._passages))

    async def search(self, queries: Sequence[str], top_k: int, filters: Mapping[str, str]) -> list[list[SearchResult]]:
        return [
            [SearchResult(self._passages[row], 0.0, rank) for rank, row in enumerate(ranked.rows, start=1)]
            for ranked in self._index.rank(queries, top_k, filters)
        ]


def test_the_tokenizer_is_the_one_the_code_builds(tmp_path: Path) -> None:
    save_tokenizer(build_tokenizer(), tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shipped = (WARM_START_FOLDER / name).read_text(encoding="utf-8")
        assert json.loads(shipped) == json.loads((tmp_path / name).read_text(encoding="utf-8"))


def test_the_chat_template_is_the_plain_text() -> None:
    tokenizer = ModelTokenizer.of_searcher(WARM_START_FOLDER)
    text = 'Find documents that answer the question .<question>Who founded  "Amber"?</question>\n'
    assert tokenizer.render_prompt(text) == tokenizer.encode(text)


def test_the_profile_is_the_small_worlds() -> None:
    text = (WARM_START_FOLDER / "searcher.json").read_text(encoding="utf-8")
    assert SearcherProfile.from_json(text) == SMALL_WORLD_PROFILE


def test_the_folder_stays_small() -> None:
    assert sum(file.stat().st_size for file in WARM_START_FOLDER.iterdir()) < 2_000_000


@pytest.mark.slow
async def test_the_shipped_searcher_writes_the_protocol_and_beats_naive_retrieval(tmp_path: Path) -> None:
    pytest.importorskip("tantivy")
    worlds = [SmallWorld(f"w{number:03d}", f"7/test/{number}", 0.25) for number in range(3)]
    searcher = Bm25Searcher(worlds, tmp_path / "index")
    questions = [question for world in worlds for question in world.questions(40, "test")]
    random.Random(0).shuffle(questions)
    engine = TorchEngine.from_folder(WARM_START_FOLDER)
    tokenizer = ModelTokenizer.from_folder(WARM_START_FOLDER)

    async def roll(question: Question) -> tuple[Trajectory, list[SearchResult]]:
        (initial,) = await searcher.search([question.text], 3, question.filters)
        trajectory = await search_loop(
            question,
            policy=engine,
            searcher=searcher,
            tokenizer=tokenizer,
            protocol=SMALL_WORLD_PROFILE.build_protocol(),
            limits=SMALL_WORLD_PROFILE.limits,
            sampling=SMALL_WORLD_PROFILE.sampling(seed=0, temperature=0.0),
            rollout_id=question.id,
            initial=initial,
        )
        return trajectory, initial

    try:
        rolled = await asyncio.gather(*(roll(question) for question in questions[:80]))
    finally:
        await engine.close()
    searched = naive = well_formed = 0
    for question, (trajectory, initial) in zip(questions, rolled, strict=False):
        golden = question.golden_answers[0]
        searched += answer_from_passages(question.text, [passage.text for passage in trajectory.documents]) == golden
        naive += answer_from_passages(question.text, [result.passage.text for result in initial]) == golden
        well_formed += trajectory.well_formed
    assert well_formed >= 76
    # about .70 against .31: with 80 questions the standard error of the difference is below .06
    assert searched >= naive + 12
