"""A model's tokenizer: its files, special tokens, chat template, and how a broken folder is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchrl.agent.protocols.base import Finish, Search
from searchrl.agent.protocols.s3 import S3Protocol
from searchrl.domain.passage import Passage
from searchrl.domain.trajectory import InformationBlock
from searchrl.errors import ConfigurationError
from searchrl.tokenization.model_tokenizer import ModelTokenizer
from tests.fakes.in_memory_searcher import results_of
from tests.fakes.model_folders import byte_level_tokenizer, word_suffix_tokenizer, write_model_folder

SPECIAL = ("<pad>", "<eos>", "<turn>")
BYTES = ModelTokenizer(byte_level_tokenizer((("a", "b"),)), frozenset(), None, None)


def byte_level_folder(tmp_path: Path, **files: Any) -> Path:
    config: dict[str, object] = {"eos_token": "<eos>", "pad_token": {"content": "<pad>"}}
    return write_model_folder(tmp_path, byte_level_tokenizer((("a", "b"),), SPECIAL), config, **files)


def test_end_and_padding_are_left_out_of_text_and_other_special_tokens_are_kept(tmp_path: Path) -> None:
    tokenizer = ModelTokenizer.from_folder(byte_level_folder(tmp_path))
    pad, eos, turn = (tokenizer.encode(token)[0] for token in SPECIAL)
    ids = [pad, *tokenizer.encode("<query>é</query>"), turn, eos, pad]
    assert tokenizer.decode(ids) == "<query>é</query><turn>"
    assert tokenizer.decode([eos]) == ""
    assert tokenizer.decode([]) == ""


def test_end_of_sequence_ids_come_from_all_three_configurations(tmp_path: Path) -> None:
    folder = byte_level_folder(tmp_path, generation_config={"eos_token_id": [3, 4]}, config={"eos_token_id": 5})
    tokenizer = ModelTokenizer.from_folder(folder)
    (named,) = tokenizer.encode("<eos>")
    assert tokenizer.eos_ids == {named, 3, 4, 5}
    assert tokenizer.pad_id == tokenizer.encode("<pad>")[0]


def test_padding_falls_back_to_an_end_of_sequence_id(tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path, byte_level_tokenizer((), SPECIAL), {"eos_token": "<eos>"})
    tokenizer = ModelTokenizer.from_folder(folder)
    assert {tokenizer.pad_id} == tokenizer.eos_ids


def test_the_vocabulary_size_counts_added_tokens(tmp_path: Path) -> None:
    tokenizer = ModelTokenizer.from_folder(byte_level_folder(tmp_path))
    assert tokenizer.vocab_size == 256 + 1 + len(SPECIAL)


def test_encoding_adds_no_special_tokens_and_reads_those_in_the_text(tmp_path: Path) -> None:
    tokenizer = ModelTokenizer.from_folder(byte_level_folder(tmp_path))
    assert len(tokenizer.encode("ab")) == 1
    assert len(tokenizer.encode("<turn>")) == 1


def test_the_chat_template_is_applied_once_with_the_start_of_the_assistants_turn(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}<turn>{{ m['role'] }}:{{ m['content'] | trim }}\n{% endfor %}"
        "{% if add_generation_prompt %}<turn>assistant:{% endif %}"
    )
    folder = byte_level_folder(tmp_path)
    (folder / "chat_template.jinja").write_text(template)
    tokenizer = ModelTokenizer.from_folder(folder)
    assert tokenizer.render_prompt(" hi ") == tokenizer.encode("<turn>user:hi\n<turn>assistant:")
    chat = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    assert tokenizer.render_chat_text(chat) == "<turn>system:be brief\n<turn>user:hi\n<turn>assistant:"


def test_the_chat_template_may_stand_in_the_configuration(tmp_path: Path) -> None:
    for source in (
        "{{ eos_token }}x",
        [{"name": "tool", "template": "no"}, {"name": "default", "template": "{{ eos_token }}x"}],
    ):
        config = {"eos_token": "<eos>", "chat_template": source}
        folder = write_model_folder(tmp_path, byte_level_tokenizer((), SPECIAL), config)
        assert ModelTokenizer.from_folder(folder).render_chat_text([]) == "<eos>x"


def test_a_searcher_without_a_chat_template_is_refused_with_what_to_add(tmp_path: Path) -> None:
    folder = byte_level_folder(tmp_path)
    with pytest.raises(ConfigurationError, match=r"has no chat template.*chat_template\.jinja"):
        ModelTokenizer.of_searcher(folder)
    (folder / "chat_template.jinja").write_text("{{ messages[-1]['content'] }}")
    tokenizer = ModelTokenizer.of_searcher(folder)
    assert tokenizer.render_prompt("ab cd") == tokenizer.encode("ab cd")


def test_a_template_cannot_reach_out_of_its_sandbox(tmp_path: Path) -> None:
    folder = byte_level_folder(tmp_path)
    (folder / "chat_template.jinja").write_text("{{ messages.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(ConfigurationError, match="refuses"):
        ModelTokenizer.from_folder(folder).render_prompt("x")


def test_a_template_can_refuse_messages_in_its_own_words(tmp_path: Path) -> None:
    folder = byte_level_folder(tmp_path)
    (folder / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(ConfigurationError, match="roles must alternate"):
        ModelTokenizer.from_folder(folder).render_prompt("x")


def test_broken_folders_are_refused_with_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"has no tokenizer.json"):
        ModelTokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="is not a tokenizer"):
        ModelTokenizer.from_folder(tmp_path)
    folder = byte_level_folder(tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{% if %}")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        ModelTokenizer.from_folder(folder)
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(ConfigurationError, match="not JSON"):
        ModelTokenizer.from_folder(folder)


def test_truncation_and_padding_set_in_the_file_never_change_a_trajectory(tmp_path: Path) -> None:
    built = byte_level_tokenizer((), SPECIAL)
    built.enable_truncation(4)
    built.enable_padding(length=8)
    tokenizer = ModelTokenizer.from_folder(write_model_folder(tmp_path, built))
    assert len(tokenizer.encode("abcdef")) == 6
    assert len(tokenizer.encode("a")) == 1


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_byte_level_text_survives_encoding_and_decoding(text: str) -> None:
    assert BYTES.decode(BYTES.encode(text)) == text.encode("utf-8", "replace").decode()


def test_turns_sampled_from_a_word_vocabulary_that_keeps_no_white_space_still_parse(tmp_path: Path) -> None:
    words = ["False", "True", "query", "Amber", "Falcon", "director"]
    built = word_suffix_tokenizer(words, ("<eos>",))
    tokenizer = ModelTokenizer.from_folder(write_model_folder(tmp_path, built, {"eos_token": "<eos>"}))
    turn = (
        "<important_info>[1, 2]</important_info><search_complete>False</search_complete>"
        '<query>{"query": "Amber Falcon director"}</query>'
    )
    done = "<important_info>[]</important_info><search_complete>True</search_complete>"
    block = InformationBlock("q", tuple(results_of(*(Passage(f"p{n}", "T", "x") for n in range(3)))))
    parsed = S3Protocol().parse_turn(tokenizer.decode(tokenizer.encode(turn)), block)
    assert parsed.action == Search(("Amber Falcon director",))
    assert parsed.selection == (1, 2)
    assert parsed.well_formed
    (eos,) = tokenizer.eos_ids
    parsed = S3Protocol().parse_turn(tokenizer.decode([*tokenizer.encode(done), eos]), block)
    assert (parsed.action, parsed.selection, parsed.well_formed) == (Finish(), (), True)


def test_the_files_are_plain_json(tmp_path: Path) -> None:
    folder = byte_level_folder(tmp_path)
    assert json.loads((folder / "tokenizer_config.json").read_text())["eos_token"] == "<eos>"
