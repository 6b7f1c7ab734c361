"""The ``searcher.json`` that ``searchrl profile`` writes for the families of models, and what it refuses."""

from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, processors

from searchrl.agent.profile import SearcherProfile
from searchrl.agent.types import Limits
from searchrl.cli.main import run
from searchrl.storage.artifact_manifest import Artifact, verify_folder, write_artifact
from searchrl.tokenization.model_tokenizer import ModelTokenizer
from tests.fakes.model_folders import byte_level_tokenizer, write_model_folder

TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
QWEN25 = "<|im_start|>system\nYou help.<|im_end|>\n" + TURNS + "<|im_start|>assistant\n"
QWEN3 = (
    TURNS + "<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
)
THINKER = TURNS + "<|im_start|>assistant\n<think>\n"
LLAMA3 = (
    "{{ bos_token }}{% if not date_string is defined %}{% if strftime_now is defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}{% else %}{% set date_string = '26 Jul 2024' %}{% endif %}"
    "{% endif %}Today Date: {{ date_string }}\n{{ messages[-1].content }}<|eot_id|>"
)
WINDOW = 32768


def model(
    folder: Path,
    template: str | None = QWEN25,
    *,
    tokenizer: Tokenizer | None = None,
    window: int = WINDOW,
    **tokens: Any,
) -> Path:
    """Write the small files of a model, with one token per byte."""
    special = ("<|im_start|>", "<|im_end|>", "<|eot_id|>", "<bos>")
    tokenizer = tokenizer or byte_level_tokenizer((), special)
    config = {"vocab_size": 512, "max_position_embeddings": window, "eos_token_id": 257}
    return write_model_folder(
        folder / "model", tokenizer, {"eos_token": "<|im_end|>", **tokens}, template, config=config
    )


def profile(folder: Path, *flags: str, protocol: str = "s3") -> int:
    return run(["profile", "--model", str(folder), "--protocol", protocol, *flags])


def written(folder: Path) -> SearcherProfile:
    return SearcherProfile.from_json((folder / "searcher.json").read_text())


def prompt(folder: Path, text: str = "who?") -> str:
    """The prompt as training and serving render it, special tokens included."""
    return str(ModelTokenizer.of_searcher(folder).render_chat_text([{"role": "user", "content": text}]))


def test_an_instruct_model_gets_the_defaults_of_this_project(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = model(tmp_path)
    assert profile(folder) == 0
    assert written(folder) == SearcherProfile("s3")
    assert prompt(folder).endswith("<|im_start|>user\nwho?<|im_end|>\n<|im_start|>assistant")
    assert (folder / "chat_template.jinja").read_text() == QWEN25
    said = capsys.readouterr().out
    assert (
        "max_searches" in said and "this project's default" in said and said.endswith(f"wrote {folder}/searcher.json\n")
    )


@pytest.mark.parametrize(
    ("flags", "thinks"), [((), False), (("--thinking", "off"), False), (("--thinking", "on"), True)]
)
def test_a_model_that_can_think_does_so_if_asked(tmp_path: Path, flags: tuple[str, ...], thinks: bool) -> None:
    folder = model(tmp_path, QWEN3)
    assert profile(folder, *flags) == 0
    assert written(folder).chat_template_kwargs == {"enable_thinking": thinks}
    assert prompt(folder).endswith("</think>\n\n") is not thinks
    limits = written(folder).limits
    # with thoughts, 4 turns of 1500 more tokens
    assert (limits.max_turn_tokens, limits.max_context_tokens) == ((2000, 14000) if thinks else (500, 8000))


def test_a_model_that_always_thinks_gets_room_for_it(tmp_path: Path) -> None:
    folder = model(tmp_path, THINKER)
    assert profile(folder) == 0
    assert written(folder).limits.max_turn_tokens == 2000
    assert written(folder).chat_template_kwargs == {}


@pytest.mark.parametrize(
    ("template", "flag", "said"),
    [(THINKER, "off", "begins every turn with a thought"), (QWEN25, "on", "has no switch")],
)
def test_a_wish_for_thinking_that_the_template_cannot_follow_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], template: str, flag: str, said: str
) -> None:
    folder = model(tmp_path, template)
    assert profile(folder, "--thinking", flag) == 2
    assert said in capsys.readouterr().err and not (folder / "searcher.json").exists()


@pytest.mark.parametrize("flags", [(), ("--date", "2024-07-26")])
def test_the_date_of_a_template_is_fixed(tmp_path: Path, flags: tuple[str, ...]) -> None:
    folder = model(tmp_path, LLAMA3, bos_token="<bos>")
    before = date.today().isoformat()
    assert profile(folder, *flags) == 0
    fixed = written(folder).template_date
    assert fixed == "2024-07-26" if flags else fixed in (before, date.today().isoformat())
    day = date.fromisoformat(fixed or "")
    assert prompt(folder) == f"<bos>Today Date: {day.strftime('%d %b %Y')}\nwho?<|eot_id|>"


def test_a_date_for_a_template_without_one_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert profile(model(tmp_path), "--date", "2024-07-26") == 2
    assert "does not print today's date" in capsys.readouterr().err
    assert profile(model(tmp_path), "--date", "yesterday") == 2
    assert "YYYY-MM-DD" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("adds_first_token", "mode", "expected"),
    [(True, "strict", "<bos>who?"), (False, "strict", "who?"), (True, "legacy", "who?")],
)
def test_a_base_model_gets_a_template_that_prints_the_text_alone(
    tmp_path: Path, adds_first_token: bool, mode: str, expected: str
) -> None:
    tokenizer = byte_level_tokenizer((), ("<|im_end|>", "<bos>"))
    if adds_first_token:
        first = [("<bos>", tokenizer.token_to_id("<bos>"))]
        tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=first)  # pyright: ignore[reportAttributeAccessIssue]
    folder = model(tmp_path, None, tokenizer=tokenizer, bos_token="<bos>")
    assert profile(folder, "--mode", mode, protocol="search_r1") == 0
    assert prompt(folder) == expected


PUBLISHED = {
    "s3": SearcherProfile("s3", "legacy", None, Limits(4, 8, 3, 500, 1400, 8000), 0.6, 0.95, 3),
    "search_r1": SearcherProfile("search_r1", "legacy", None, Limits(4, 3, 3, 500, 500, 4096), 1.0, 1.0, 0),
}


@pytest.mark.parametrize("protocol", PUBLISHED)
def test_a_published_checkpoint_is_run_as_it_was_trained(tmp_path: Path, protocol: str) -> None:
    folder, file = model(tmp_path), tmp_path / "prompt.txt"
    file.write_bytes(b"Find {documents}\r\nfor {question}\n\n")
    assert profile(folder, "--mode", "legacy", "--template", str(file), protocol=protocol) == 0
    assert written(folder) == replace(PUBLISHED[protocol], template="Find {documents}\r\nfor {question}\n\n")


def test_flags_win_over_the_defaults(tmp_path: Path) -> None:
    folder = model(tmp_path)
    flags = "--mode legacy --top-p 1 --searches 1 --top-k 5 --turn-tokens 300 --initial-top-k 0 --temperature 0.5"
    assert profile(folder, *flags.split()) == 0
    found = written(folder)
    assert (found.top_p, found.temperature, found.initial_top_k) == (1.0, 0.5, 0)
    assert (found.limits.max_searches, found.limits.top_k, found.limits.max_turn_tokens) == (1, 5, 300)


def test_the_context_of_a_small_model_limits_a_rollout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = model(tmp_path, window=6000)
    assert profile(folder) == 0
    assert written(folder).limits.max_context_tokens == 6000
    assert "all of the model's context" in capsys.readouterr().out
    assert profile(model(tmp_path / "small", window=1000)) == 2
    assert "larger context" in capsys.readouterr().err
    assert profile(model(tmp_path / "large"), "--context-tokens", "7000") == 0  # a window of 32,768
    assert written(tmp_path / "large" / "model").limits.max_context_tokens == 7000


@pytest.mark.parametrize(
    ("text", "said"), [("Find {documents}", "no {question}"), ("Answer {question}", "no {documents}")]
)
def test_a_prompt_without_a_placeholder_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text(text)
    assert profile(model(tmp_path), "--template", str(file)) == 2
    assert said in capsys.readouterr().err


def test_an_existing_profile_is_replaced_only_with_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = model(tmp_path)
    assert profile(folder) == 0 and profile(folder) == 0  # the same one again
    before = (folder / "searcher.json").read_text()
    assert profile(folder, "--searches", "2") == 2
    assert "--force replaces it" in capsys.readouterr().err
    assert (folder / "searcher.json").read_text() == before
    assert profile(folder, "--searches", "2", "--force") == 0
    assert written(folder).limits.max_searches == 2


def test_a_profile_that_a_manifest_verifies_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = model(tmp_path)
    assert profile(folder) == 0
    write_artifact(folder, Artifact("model"))
    assert profile(folder) == 0  # the same one
    assert profile(folder, "--searches", "2", "--force") == 2
    assert "copy the folder without manifest.json" in capsys.readouterr().err
    assert verify_folder(folder) is not None


@pytest.mark.parametrize(
    ("template", "files", "said"),
    [
        ("{{ messages[-1].content | upper }}", {}, "rewrites the text|does not print"),
        ("{{ raise_exception('no users') }}", {}, "no users"),
        (QWEN25, {"config.json": '{"vocab_size": 9}'}, "embeddings for ids up to 8"),
        (QWEN25, {"adapter_config.json": "{}"}, "LoRA adapter"),
        (QWEN25, {"config.json": None}, "no config.json"),
        (QWEN25, {"tokenizer.json": None}, "no tokenizer.json"),
    ],
)
def test_a_model_that_cannot_be_prompted_is_refused_and_nothing_is_written(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    template: str,
    files: dict[str, str | None],
    said: str,
) -> None:
    folder = model(tmp_path, template)
    for name, text in files.items():
        (folder / name).unlink(missing_ok=True)
        if text is not None:
            (folder / name).write_text(text)
    names = sorted(folder.iterdir())
    assert profile(folder) == 2
    error = capsys.readouterr().err
    assert any(part in error for part in said.split("|")), error
    assert "/tmp/tmp" not in error  # the folder of the checks is no concern of the user
    assert sorted(folder.iterdir()) == names
