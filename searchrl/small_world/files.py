"""Writes the files of a set of small worlds: one corpus, and the questions of each split."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from searchrl.domain.passage import Passage
from searchrl.domain.question import Question
from searchrl.small_world.world import SmallWorld
from searchrl.storage.durable_files import atomic_path

WARM_START_FOLDER = Path(__file__).parent / "warm_start"
"""A searcher trained on demonstrations only, ready for reinforcement learning: a Hugging Face model folder."""

WORLD_SCALE = 0.25
"""75 films, 105 persons and so on per world. Many small worlds teach to copy names from documents; one large world is
memorized."""
LARGE_WORLD_SCALE = 1.0
"""Four times the training worlds: shows whether the searcher generalizes to a larger corpus."""


@dataclass(frozen=True, slots=True)
class SmallWorldFiles:
    """Paths of one written set. ``train``, ``test`` and ``large`` hold questions, ``corpus`` all worlds' passages."""

    corpus: Path
    train: Path
    test: Path
    large: Path


def write_small_world(
    folder: Path,
    seed: int = 0,
    train_worlds: int = 300,
    test_worlds: int = 4,
    questions_per_world: int = 150,
    large_questions: int = 500,
    scale: float = WORLD_SCALE,
    large_scale: float = LARGE_WORLD_SCALE,
) -> SmallWorldFiles:
    """Write training worlds, unseen test worlds of the same size, and one larger unseen world.

    Test worlds draw names from the same pool as the training worlds but have their own facts. The larger world's names
    occur in no other world, for any seed. Ids are numbered consecutively from the training worlds to the larger one;
    the content of a split depends only on the seed and on its own number of worlds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = SmallWorldFiles(*(folder / f"{name}.jsonl" for name in ("corpus", "train", "test", "large")))
    splits = [("train", number) for number in range(train_worlds)]
    splits += [("test", number) for number in range(test_worlds)] + [("large", 0)]
    worlds: dict[str, list[SmallWorld]] = {"train": [], "test": [], "large": []}
    for position, (split, number) in enumerate(splits):
        is_large = split == "large"
        # Not the position: with one more training world the test worlds would become others, and results would not
        # compare.
        seed_text = f"{seed}/{split}/{number}"
        worlds[split].append(
            SmallWorld(f"w{position:03d}", seed_text, large_scale if is_large else scale, reserved_names=is_large)
        )
    every_world = [world for members in worlds.values() for world in members]
    _write_lines(paths.corpus, (passage_to_row(passage) for world in every_world for passage in world.passages))
    for path, (split, members) in zip((paths.train, paths.test, paths.large), worlds.items(), strict=True):
        count = large_questions if split == "large" else questions_per_world
        _write_lines(
            path, (question_to_row(question) for world in members for question in world.questions(count, split))
        )
    return paths


def passage_to_row(passage: Passage) -> dict[str, object]:
    """Return the corpus row of a passage, in Search-R1's layout."""
    return {"id": passage.id, "contents": passage.contents, "metadata": dict(passage.metadata)}


def question_to_row(question: Question) -> dict[str, object]:
    return {
        "id": question.id,
        "question": question.text,
        "golden_answers": list(question.golden_answers),
        "gold_doc_ids": list(question.gold_passage_ids),
        "filters": dict(question.filters),
        "metadata": dict(question.metadata),
    }


def _write_lines(path: Path, rows: Iterable[dict[str, object]]) -> None:
    # Not flushed: the files follow from the seed and can be written again.
    with atomic_path(path, durable=False, unique=False) as part, part.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
