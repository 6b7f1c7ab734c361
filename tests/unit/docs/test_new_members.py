"""The instructions "How to add ..." of CONTRIBUTING.md, followed: a new file in its folder, and a name in its registry.

The files are those of ``tests/fakes/new_members``. A search protocol and a shape of rows are added in the same way in
``tests/unit/agent/test_open_action.py`` and ``tests/unit/datasets/test_row_shapes.py``.
"""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from searchrl.domain.answer import Answer
from searchrl.domain.question import Question
from searchrl.domain.trajectory import Trajectory, Turn
from searchrl.storage.fetch import fetch, open_source
from searchrl.storage.sources import SOURCES
from services.generator.engines import ENGINES
from services.generator.engines.settings import ChatEngineSettings
from services.generator.methods import METHODS
from services.generator.methods.base import AnswerOptions
from services.generator.settings import GeneratorSettings
from services.generator.wiring import build_service
from services.retriever.encoders import ENCODERS
from services.retriever.encoders.base import EncoderSettings
from services.retriever.encoders.open_encoder import reopen_encoder
from services.retriever.generations.generation import Generation, open_generation
from services.retriever.generations.generation_builder import build_generation
from services.retriever.generations.index_store import IndexStore
from services.retriever.indexes import INDEX_KINDS
from services.retriever.indexes.manifest import BuildPlan
from services.retriever.indexes.vectors import VECTOR_STORAGES
from services.retriever.indexes.vectors.base import VectorPlan
from services.trainer.rewards import REWARDS
from services.trainer.trackers import TRACKERS
from services.trainer.trackers.base import RunEnd, TrackedStep, TrackerContext
from services.trainer.trackers.build import TrackerSettings, build_trackers
from services.trainer.trackers.tracker_thread import close_trackers

ROOT = Path(__file__).parents[3]
REGISTRIES = (
    *("METHODS", "ENGINES", "INDEX_KINDS", "VECTOR_STORAGES", "ENCODERS", "REWARDS", "ALGORITHMS", "PROTOCOLS"),
    *("ROW_SHAPES", "SOURCES", "TRACKERS"),
)
CORPUS = ('{"id": "a", "contents": "\\"Oslo\\"\\nnnn"}', '{"id": "b", "contents": "\\"Falcon\\"\\nzzz"}')
Register = Callable[[Any, str, str, Callable[[Any], Any]], None]


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Register:
    """Return a function that puts a file into a package's folder, and what it defines into a registry."""

    def add(registry: dict[str, Any], package: str, name: str, member_of: Callable[[Any], Any]) -> None:
        folder = tmp_path / "packages" / package
        folder.mkdir(parents=True)
        (folder / f"{name}.py").write_text((ROOT / "tests" / "fakes" / "new_members" / f"{name}.py").read_text())
        parent = importlib.import_module(package)
        # As if the file were in the package's folder, without a change to the source tree.
        monkeypatch.setattr(parent, "__path__", [*parent.__path__, str(folder)])
        module = importlib.import_module(f"{package}.{name}")
        monkeypatch.delattr(parent, name)
        del sys.modules[module.__name__]
        monkeypatch.setitem(registry, name, member_of(module))

    return add


def build_and_open(folder: Path, kind: str, **plan: Any) -> Generation:
    """Build an index of ``CORPUS`` and open it as the retriever does."""
    corpus = folder / "corpus.jsonl"
    corpus.write_text("\n".join(CORPUS))
    store = IndexStore(folder / "indexes")
    manifest = build_generation(store, BuildPlan((corpus,), kind, **plan), lambda phase, done, total: None)
    return open_generation(
        store.generation_folder(manifest.generation), lambda found: reopen_encoder(found, EncoderSettings())
    )


def rank(generation: Generation, query: str) -> list[str]:
    (ranker,) = generation.first_stages[generation.default_mode]
    return [generation.passages.passage(row).title for row in ranker.rank([query], 1, {})[0].rows]


async def answer(settings: GeneratorSettings, method: str) -> Answer:
    parts = build_service(settings, CollectorRegistry())
    assert method in parts.answers.methods()
    steps = [step async for step in parts.answers.answer(Question("q", "Who?"), method, AnswerOptions())]
    await parts.stop()
    assert isinstance(steps[-1], Answer)
    return steps[-1]


def test_contributing_says_how_to_add_to_each_registry() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert [name for name in REGISTRIES if f"`{name}`" not in text] == []


async def test_a_new_answering_method_is_served(register: Register) -> None:
    register(METHODS, "services.generator.methods", "repeat", lambda file: file.RepeatMethod)
    assert (await answer(GeneratorSettings(), "repeat")).text == "Who?"


async def test_a_new_engine_answers(register: Register) -> None:
    register(ENGINES, "services.generator.engines", "parrot", lambda file: file.build_parrot)
    # The second step of the instructions, the name in the type of ``kind``, is what this copy leaves out.
    engine = ChatEngineSettings().model_copy(update={"kind": "parrot"})
    found = await answer(GeneratorSettings(engine=engine), "direct")
    assert (found.text, found.provenance.generator_model) == ("Who?", "parrot")


def test_a_new_kind_of_index_is_built_and_searched(register: Register, tmp_path: Path) -> None:
    register(INDEX_KINDS, "services.retriever.indexes", "titles", lambda file: file.TitleKind())
    generation = build_and_open(tmp_path, "titles")
    assert rank(generation, "Falcon") == ["Falcon"]
    assert rank(generation, "zzz") == []


def test_a_new_encoder_opens_its_models(register: Register, tmp_path: Path) -> None:
    register(ENCODERS, "services.retriever.encoders", "letters", lambda file: file.LetterEncoder)
    (tmp_path / "letters.txt").touch()
    generation = build_and_open(tmp_path, "dense", encoder=tmp_path)
    assert rank(generation, "zz") == ["Falcon"]
    assert rank(generation, "nn") == ["Oslo"]


def test_a_new_storage_of_vectors_is_built_and_searched(register: Register, tmp_path: Path) -> None:
    class HalfPlan(VectorPlan):
        @property
        def storage(self) -> str:
            return "half"

    register(ENCODERS, "services.retriever.encoders", "letters", lambda file: file.LetterEncoder)
    register(VECTOR_STORAGES, "services.retriever.indexes.vectors", "half", lambda file: file.HalfStorage())
    (tmp_path / "letters.txt").touch()
    generation = build_and_open(tmp_path, "dense", encoder=tmp_path, vectors=HalfPlan())
    assert generation.manifest.vectors == "half"
    assert rank(generation, "zz") == ["Falcon"]


async def test_a_new_reward_scores_trajectories(register: Register) -> None:
    register(REWARDS, "services.trainer.rewards", "brevity", lambda file: (file.BrevityReward, file.BrevitySettings))
    reward_class, settings_class = REWARDS["brevity"]
    function = reward_class.build(settings_class(), None, ())
    turns = [Turn("t", "search"), Turn("t", "finish")]
    assert (await function.score(Question("q", "Who?"), Trajectory("q", turns=turns))).value == 0.5


def test_a_new_tracker_shows_the_steps_of_a_run(register: Register, tmp_path: Path) -> None:
    register(TRACKERS, "services.trainer.trackers", "lines", lambda file: file.LinesTracker)
    context = TrackerContext("first", tmp_path, {})
    (thread,) = build_trackers(TrackerSettings(trackers=("lines",)), context)
    thread.start(0)
    thread.record(TrackedStep(1, {"step": 1, "reward": 0.5}, 100.0))
    close_trackers([thread], RunEnd.FINISHED)
    assert (tmp_path / "lines.txt").read_text() == "first 1 {'reward': 0.5}\nfinished\n"


def test_a_new_source_of_files_is_fetched_from(register: Register, tmp_path: Path) -> None:
    register(SOURCES, "searchrl.storage.sources", "memory", lambda file: file.MemorySource)
    fetch("memory://words", tmp_path / "fetched", open_source("memory://words"))
    assert (tmp_path / "fetched" / "text").read_text() == "words"
