"""Rows of public formats as tokens: which of them are the policy's, and which rows are refused or left out."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from searchrl.datasets.row import BadRow, Row
from searchrl.errors import ConfigurationError
from searchrl.tokenization.model_tokenizer import ModelTokenizer
from services.trainer.algorithms.sft import TokenDemonstration
from services.trainer.sft.chat_rows import read_row
from services.trainer.sft.token_rows import read_token_rows, tokenize_row
from tests.fakes.model_folders import byte_level_tokenizer, write_model_folder
from tests.fakes.tiny_llm import CHATML, SPECIAL_TOKENS

MERGES = (("Ċ", "Ċ"), ("h", "i"))  # two line feeds are one token, and so is "hi"
USER, HELLO = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
MORE, BYE = {"role": "user", "content": "more"}, {"role": "assistant", "content": "bye"}
CALLS = CHATML.replace(
    "{{ message['content'] }}",
    "{{ message['content'] }}{% for call in message.tool_calls or [] %}"
    "<{{ call.function.name }} {{ call.function.arguments | tojson }}>{% endfor %}",
)


def folder_with(folder: Path, template: str | None = CHATML, end: str | None = "<|im_end|>") -> Path:
    config = {} if end is None else {"eos_token": end}
    return write_model_folder(folder, byte_level_tokenizer(MERGES, SPECIAL_TOKENS), config, template)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return folder_with(tmp_path / "chatml")


@pytest.fixture
def tokenizer(model: Path) -> ModelTokenizer:
    return ModelTokenizer.from_folder(model)


def tokenize(tokenizer: ModelTokenizer, row: dict[str, Any], **options: Any) -> TokenDemonstration:
    return tokenize_row(read_row(Row(row)), tokenizer, **options)


def parts(tokenizer: ModelTokenizer, row: TokenDemonstration) -> list[tuple[str, bool]]:
    """The runs of equally masked tokens as text, with ``|`` for the token that ends a turn."""
    runs: list[tuple[list[int], bool]] = []
    for token_id, is_trained in zip(row.token_ids, row.action_mask, strict=True):
        if not runs or runs[-1][1] != bool(is_trained):
            runs.append(([], bool(is_trained)))
        runs[-1][0].append(int(token_id))
    ends = tokenizer.eos_ids
    return [("".join("|" if i in ends else tokenizer.decode([i]) for i in ids), trained) for ids, trained in runs]


def test_the_policy_writes_the_assistants_messages_up_to_the_end_of_each_turn(tokenizer: ModelTokenizer) -> None:
    row = tokenize(tokenizer, {"messages": [USER, HELLO, MORE, BYE, MORE]})
    start = "<|im_start|>"
    assert parts(tokenizer, row) == [
        (f"{start}user\nhi|\n{start}assistant\n", False),
        ("hello|", True),
        (f"\n{start}user\nmore|\n{start}assistant\n", False),
        ("bye|", True),
    ]


def test_what_precedes_the_policys_tokens_is_the_prompt_that_a_searcher_would_get(tokenizer: ModelTokenizer) -> None:
    row = tokenize(tokenizer, {"messages": [USER, HELLO]})
    prompt = tokenizer.render_chat([USER])
    assert np.asarray(row.token_ids)[: len(prompt)].tolist() == prompt
    assert np.asarray(row.action_mask).tolist().index(True) == len(prompt)


@pytest.mark.parametrize(
    ("row", "options", "trained"),
    [
        ({"messages": [USER, HELLO | {"weight": 0}, MORE, BYE | {"weight": 1}]}, {}, ["bye|"]),
        ({"messages": [USER, HELLO, MORE, BYE]}, {"trained_messages": "last"}, ["bye|"]),
        ({"prompt": [USER, HELLO, MORE], "completion": [BYE]}, {}, ["bye|"]),
        ({"messages": json.dumps([USER, HELLO])}, {}, ["hello|"]),
        ({"messages": [USER, {"role": "assistant", "content": [{"type": "text", "text": "hello"}]}]}, {}, ["hello|"]),
        ({"prompt": "2 and 2 is ", "completion": "4"}, {}, ["4|"]),
    ],
    ids=["weights", "last message", "prompt and completion", "JSON text", "parts", "texts"],
)
def test_only_what_is_to_be_trained_is_trained(
    tokenizer: ModelTokenizer, row: dict[str, Any], options: dict[str, Any], trained: list[str]
) -> None:
    assert [text for text, is_trained in parts(tokenizer, tokenize(tokenizer, row, **options)) if is_trained] == trained


def test_characters_that_would_merge_with_the_prompt_are_encoded_as_the_model_would_write_them(
    tokenizer: ModelTokenizer,
) -> None:
    row = tokenize(tokenizer, {"messages": [USER, {"role": "assistant", "content": "\n\nhi"}]})
    (prompt, _), (written, is_trained) = parts(tokenizer, row)
    assert prompt.endswith("assistant\n") and (written, is_trained) == ("\n\nhi|", True)
    merged = tokenizer.encode("\n\n")  # one token: in the complete text, of the prompt's line feed and the next
    assert len(merged) == 1 and merged[0] not in np.asarray(row.token_ids)


def test_tool_calls_are_printed_as_objects_and_results_are_not_trained(tmp_path: Path) -> None:
    tokenizer = ModelTokenizer.from_folder(folder_with(tmp_path, CALLS))
    call = {"id": "1", "type": "function", "function": {"name": "search", "arguments": '{"query": "hi"}'}}
    messages = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "found"},
        BYE,
    ]
    written = [text for text, trained in parts(tokenizer, tokenize(tokenizer, {"messages": messages})) if trained]
    assert written == ['<search {"query": "hi"}>|', "bye|"]


def test_a_template_without_ends_of_turns_gets_one_at_the_end(tmp_path: Path) -> None:
    plain = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    tokenizer = ModelTokenizer.from_folder(folder_with(tmp_path, plain))
    row = tokenize(tokenizer, {"messages": [USER, HELLO, MORE, BYE]})
    assert [text for text, trained in parts(tokenizer, row) if trained] == ["hello\n", "bye\n|"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"question": "?"}, "needs 'messages', or 'prompt' and 'completion', found the keys question"),
        ({"messages": []}, "'messages' must be a list of messages, found a list of 0"),
        ({"messages": "no JSON"}, "'messages' must be JSON"),
        ({"messages": [USER, "hello"]}, "message 2 of 'messages' must be an object, found 'hello'"),
        ({"messages": [{"content": "hi"}]}, "message 1 of 'messages' needs a role"),
        ({"messages": [{"role": "user"}, HELLO]}, "message 1 of 'messages' needs a text as content, found null"),
        ({"messages": [USER, {"role": "assistant", "content": ""}]}, "has neither text nor tool calls"),
        ({"messages": [USER, HELLO | {"weight": 0.5}]}, "weight must be 0 or 1, found 0.5"),
        ({"messages": [USER]}, "no message of the assistant is trained"),
        ({"messages": [USER, HELLO | {"content": [{"type": "image_url"}]}]}, "only parts of text can be trained"),
        ({"messages": [USER, HELLO | {"tool_calls": [{"id": "1"}]}]}, "tool call 1 needs a function with a name"),
        (
            {"messages": [USER, HELLO | {"tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
            "tool call 1: arguments must be JSON",
        ),
        ({"messages": [USER, HELLO], "tools": {"f": 1}}, "'tools' must be a list of objects"),
        ({"messages": [USER, HELLO], "chat_template_kwargs": {"messages": 1}}, "cannot set messages"),
        ({"prompt": "a", "completion": [HELLO]}, "must be two texts or two lists of messages"),
        ({"prompt": "a", "completion": ""}, "the completion is empty"),
        ({"prompt": "", "completion": "a"}, "nothing precedes the first of the assistant's tokens"),
        ({"messages": [USER, {"role": "assistant", "content": "a<|im_end|>b"}]}, "holds a token that ends"),
        (
            {"messages": [USER, HELLO | {"tool_calls": [{"function": {"name": "f"}}]}]},
            "the chat template does not print the tool calls of message 2",
        ),
    ],
)
def test_a_row_that_cannot_be_used_is_refused(tokenizer: ModelTokenizer, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        tokenize(tokenizer, row)


# Qwen3's template leaves out the thoughts of earlier messages, and others print the number of messages or a summary.
REWRITING = CHATML.replace(
    "{{ message['content'] }}", "{{ message['content'].split('/')[-1] if not loop.last else message['content'] }}"
)


def test_a_template_that_renders_earlier_messages_differently_is_refused(tmp_path: Path) -> None:
    tokenizer = ModelTokenizer.from_folder(folder_with(tmp_path, REWRITING))
    thinking = {"role": "assistant", "content": "thought/hello"}
    row = {"messages": [USER, thinking, MORE, BYE]}
    with pytest.raises(BadRow, match=r"renders the first messages differently when 3 are given.*trained_messages=last"):
        tokenize(tokenizer, row)
    with pytest.raises(BadRow, match="renders the first messages differently when 3 are given"):
        tokenize(tokenizer, {"messages": [USER, thinking, MORE]})
    last = parts(tokenizer, tokenize(tokenizer, row, trained_messages="last"))
    assert [text for text, trained in last if trained] == ["bye|"] and "thought" not in last[0][0]


def test_a_template_whose_prompt_is_not_the_beginning_of_the_message_is_refused(tmp_path: Path) -> None:
    template = CHATML.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>{% endif %}")
    tokenizer = ModelTokenizer.from_folder(folder_with(tmp_path, template))
    with pytest.raises(BadRow, match="renders message 2 in another way than it begins the assistant's turn"):
        tokenize(tokenizer, {"messages": [USER, HELLO]})


def test_a_template_that_does_not_print_the_text_is_refused(tmp_path: Path) -> None:
    parts_alone = CHATML.replace("{{ message['content'] }}", "{{ message['content'][0].text }}")
    tokenizer = ModelTokenizer.from_folder(folder_with(tmp_path, parts_alone))
    with pytest.raises(BadRow, match="does not print the text of message 2"):
        tokenize(tokenizer, {"messages": [USER, HELLO]})


@pytest.mark.parametrize(
    ("template", "end", "reason"),
    [
        (None, "<|im_end|>", "no chat template"),
        (CHATML, None, "no end-of-sequence token"),
        ("{{ strftime_now('%d') }}" + CHATML, "<|im_end|>", "prints today's date"),
    ],
)
def test_a_model_whose_rows_would_be_wrong_is_refused(
    tmp_path: Path, template: str | None, end: str | None, reason: str
) -> None:
    tokenizer = ModelTokenizer.from_folder(folder_with(tmp_path, template, end))
    with pytest.raises(ConfigurationError, match=reason):
        tokenize(tokenizer, {"messages": [USER, HELLO]})


def write_lines(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_bad_rows_are_named_with_file_and_line_and_none_is_left_out(model: Path, tmp_path: Path) -> None:
    good = {"messages": [USER, HELLO]}
    first = write_lines(tmp_path / "a.jsonl", [good, {"messages": [USER]}, good])
    second = write_lines(tmp_path / "b.jsonl", [good, good, {"text": "?"}])
    with pytest.raises(ConfigurationError) as caught:
        read_token_rows([first, second], model, None)
    assert f"{first}, line 2: no message of the assistant is trained" in str(caught.value)
    assert f"{second}, line 3: needs 'messages'" in str(caught.value)
    many = write_lines(tmp_path / "c.jsonl", [{}] * 30)
    with pytest.raises(ConfigurationError, match=r"c.jsonl, line 5: needs.*; and 15 more$"):
        read_token_rows([many], model, None)


def test_rows_that_are_too_long_are_counted_and_named(model: Path, tmp_path: Path) -> None:
    long = {"messages": [{"role": "user", "content": "x" * 99}, HELLO]}
    file = write_lines(tmp_path / "rows.jsonl", [{"messages": [USER, HELLO]}, long])
    found = read_token_rows([file], model, 60)
    assert len(found.rows) == 1 and [row.place for row in found.too_long] == [f"{file}, line 2"]
    assert f"1 left out as longer than 60 tokens: {file}, line 2 (" in found.describe()
    with pytest.raises(ConfigurationError, match="no row is left to train on"):
        read_token_rows([file], model, 5)


def test_parquet_files_and_a_single_row_are_read_alike(model: Path, tmp_path: Path) -> None:
    rows = [{"messages": [USER, HELLO | {"name": "a"}]}, {"messages": [USER, HELLO, MORE, BYE]}]
    table = tmp_path / "rows.parquet"
    parquet.write_table(pa.Table.from_pylist(rows), table)
    lines = write_lines(tmp_path / "rows.jsonl", rows)
    one = write_lines(tmp_path / "one.jsonl", rows[:1])
    found = [read_token_rows([file], model, None) for file in (table, lines, one)]
    assert found[0].fingerprint == found[1].fingerprint != found[2].fingerprint
    assert len(found[2].rows) == 1


@pytest.mark.parametrize("name", ["missing.jsonl", "broken.jsonl", "broken.parquet"])
def test_a_file_that_cannot_be_read_is_named(model: Path, tmp_path: Path, name: str) -> None:
    if name == "broken.jsonl":
        (tmp_path / name).write_text('{"messages": []}\n{"messages\n')
    elif name == "broken.parquet":
        (tmp_path / name).write_bytes(b"PAR1 and nothing more")
    with pytest.raises(ConfigurationError, match=name):
        read_token_rows([tmp_path / name], model, None)
