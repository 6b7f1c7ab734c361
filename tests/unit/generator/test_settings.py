"""Settings of the generator decide its engine, methods and judge; those that cannot work are refused."""

import json
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from searchrl.agent.profile import SearcherProfile
from searchrl.errors import ConfigurationError
from services.generator.settings import GeneratorSettings
from services.generator.wiring import build_service
from tests.fakes.model_folders import byte_level_tokenizer, write_model_folder


def build(*assignments: str):  # type: ignore[no-untyped-def]
    argv = [part for assignment in assignments for part in ("--set", assignment)]
    return build_service(GeneratorSettings.from_environment(argv), CollectorRegistry())


async def test_without_settings_it_is_the_reader_alone() -> None:
    parts = build()
    assert parts.answers.methods() == ["direct"]
    assert parts.chat_completions.models() == ["reader", "searchrl/direct"]
    await parts.start()
    await parts.stop()


async def test_a_retriever_brings_the_methods_that_search() -> None:
    parts = build("retriever.target=127.0.0.1:1")
    assert parts.answers.methods() == ["direct", "rag", "title_heuristic", "oracle", "random_retriever"]
    await parts.stop()


@pytest.mark.parametrize("protocol", ["s3", "search_r1"])
async def test_a_searchers_profile_decides_which_method_it_serves(tmp_path: Path, protocol: str) -> None:
    write_model_folder(tmp_path, byte_level_tokenizer(), chat_template="{{ messages[-1]['content'] }}")
    (tmp_path / "searcher.json").write_text(SearcherProfile(protocol=protocol).to_json())
    parts = build(
        "retriever.target=127.0.0.1:1",
        f"searcher.model_dir={tmp_path}",
        "searcher.base_url=http://127.0.0.1:1",
        "searcher.model=policy",
    )
    assert parts.answers.methods()[2] == protocol
    await parts.stop()


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["engine.kind=url"], "engine.base_url and engine.model"),
        (["engine.kind=vllm"], "engine.vllm.model"),
        (["engine.kind=vllm", "engine.vllm.model=org/x", "engine.vllm.executable=/nowhere/vllm"], "make install-vllm"),
        (["engine.knd=url"], "kind"),
        (["engine.kind=gpt"], "engine.kind"),
        (["searcher.model_dir=/nowhere", "searcher.base_url=http://x", "searcher.model=p"], "retriever.target"),
        (
            [
                "retriever.target=127.0.0.1:1",
                "searcher.model_dir=/nowhere",
                "searcher.base_url=http://x",
                "searcher.model=p",
            ],
            "searcher.json",
        ),
        (["context.template_file=/nowhere/t.txt"], "context template"),
        (["context.tokenizer_dir=/nowhere"], "tokenizer_dir"),
    ],
)
async def test_settings_that_cannot_work_are_refused_with_advice(assignments: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        build(*assignments)


async def test_a_separate_engine_serves_the_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "GENERATOR_JUDGE__ENGINE", json.dumps({"kind": "url", "base_url": "http://127.0.0.1:1", "model": "judge-7b"})
    )
    parts = build()
    verdict = await parts.generations.judge("Who?", "Jon Reed", ["jon reed"])
    assert verdict.judge_version.startswith("judge-7b@")
    assert parts.chat_completions.models()[0] == "reader"
    await parts.stop()
