"""The small world's tokenizer: every name part and tag is one token, and texts survive encoding and decoding."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchrl.agent.protocols.base import Finish, Search
from searchrl.agent.protocols.s3 import S3Protocol
from searchrl.agent.rendering import render_information_block, render_observation
from searchrl.domain.passage import Passage, SearchResult
from searchrl.domain.trajectory import InformationBlock
from searchrl.small_world.demonstrations import render_turn
from searchrl.small_world.names import list_name_parts
from searchrl.small_world.relations import RELATIONS
from searchrl.small_world.world import SmallWorld
from searchrl.tokenization.model_tokenizer import ModelTokenizer
from services.trainer.small_world.tokenizer import TAGS, build_tokenizer, save_tokenizer

QUERY_WORDS = [
    word for relation in RELATIONS for text in (*relation.nouns, *relation.key_words) for word in text.split()
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ModelTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(build_tokenizer(), folder)
    return ModelTokenizer.from_folder(folder)


def results() -> tuple[SearchResult, ...]:
    passages = SmallWorld("w000", "0", 0.05).passages[:3]
    return tuple(SearchResult(passage, 1.0, rank) for rank, passage in enumerate(passages, 1))


@given(
    selection=st.lists(st.integers(1, 12), max_size=4),
    query=st.none() | st.lists(st.sampled_from([*list_name_parts(), *QUERY_WORDS]), min_size=1).map(" ".join),
)
def test_an_encoded_turn_is_decoded_unchanged(
    tokenizer: ModelTokenizer, selection: list[int], query: str | None
) -> None:
    text = render_turn(selection, query)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_what_is_decoded_is_what_the_protocol_reads(tokenizer: ModelTokenizer) -> None:
    block = InformationBlock("", results())
    (eos,) = tokenizer.eos_ids
    ids = tokenizer.encode(render_turn([1, 3], "Amber Falcon director"))
    turn = S3Protocol().parse_turn(tokenizer.decode(ids), block)
    assert turn.well_formed
    assert turn.action == Search(("Amber Falcon director",))
    assert turn.selection == (1, 3)
    last = S3Protocol().parse_turn(tokenizer.decode([*tokenizer.encode(render_turn([2], None)), eos]), block)
    assert last.well_formed
    assert last.action == Finish()


def test_every_name_part_and_every_tag_is_one_token(tokenizer: ModelTokenizer) -> None:
    for text in (*list_name_parts(), *TAGS):
        assert len(tokenizer.encode(text)) == 1


def test_every_text_of_a_world_is_made_of_whole_words(tokenizer: ModelTokenizer) -> None:
    raw = build_tokenizer()
    world = SmallWorld("w000", "0", 0.1)
    texts = [passage.text for passage in world.passages] + [question.text for question in world.questions(50, "train")]
    tokens = {token for text in texts for token in raw.encode(text).tokens}
    assert not any(token.startswith("##") or token == "<unk>" for token in tokens)


def test_documents_come_back_with_line_breaks_as_blanks(tokenizer: ModelTokenizer) -> None:
    block = render_information_block(results())
    expected = block.replace("\n</", "</").replace("\n", " ")
    assert tokenizer.decode(tokenizer.encode(block)) == expected
    assert tokenizer.encode(render_observation([results()])) == tokenizer.encode(block)


def test_unknown_words_are_encoded_as_characters(tokenizer: ModelTokenizer) -> None:
    ids = tokenizer.encode("Who is Zaphod?")
    assert tokenizer.decode(ids) == "Who is Zaphod?"
    assert tokenizer.decode(tokenizer.encode("日本")) == "<unk>"


def test_the_ids_are_the_same_in_every_process() -> None:
    module = build_tokenizer.__module__
    program = f"from {module} import build_tokenizer; print(build_tokenizer().to_str())"
    environment = {"PYTHONHASHSEED": "7", "PYTHONPATH": ":".join(sys.path)}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == build_tokenizer().to_str()


def test_transformers_reads_the_same_ids(tokenizer: ModelTokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    save_tokenizer(build_tokenizer(), tmp_path)
    other = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = S3Protocol().render_prompt("What is the director of Amber Falcon?", results())
    assert other(text)["input_ids"] == tokenizer.render_prompt(text)
    assert {other.eos_token_id} == tokenizer.eos_ids
    assert other.pad_token_id == tokenizer.pad_id


def test_a_passage_with_quotes_in_its_title_is_still_encodable(tokenizer: ModelTokenizer) -> None:
    block = render_information_block([SearchResult(Passage("1", 'The "Great" One', "Text."), 1.0, 1)])
    assert tokenizer.encode(block)
