"""The generator as a real process over a real vLLM with a tiny random model. All tests share one server."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from searchrl.agent.types import Sampling
from searchrl.clients.generator_client import GeneratorClient
from searchrl.clients.remote_policy import RemotePolicy
from searchrl.domain.passage import Passage
from searchrl.domain.question import Question
from searchrl.tokenization.model_tokenizer import ModelTokenizer
from tests.fakes.tiny_llm import make_tiny_llm
from tests.integration.real_vllm import NEEDS_VLLM, VLLM

ROOT = Path(__file__).parents[3]
START_SECONDS = 540  # of vLLM, until it has generated; a start that takes one minute takes many on a busy machine

pytestmark = [
    *NEEDS_VLLM,
    pytest.mark.slow,
    pytest.mark.timeout(900),
]


@dataclass(frozen=True, slots=True)
class Running:
    """The generator's process, its addresses and its log."""

    process: subprocess.Popen[bytes]
    grpc: str
    http: str
    model_dir: Path
    log: Path


def settings_of(model: Path, folder: Path) -> dict[str, object]:
    """Settings of a generator that supervises vLLM on CPUs with a tiny model."""
    return {
        "listen": {"http_port": 0, "grpc_port": 0, "drain_seconds": 120},
        "ready_file": str(folder / "ready.json"),
        "context": {"max_answer_tokens": 24},
        "engine": {
            "kind": "vllm",
            "vllm": {
                "executable": str(VLLM),
                "model": str(model),
                "dtype": "float32",
                "max_model_len": 2048,
                "max_num_seqs": 16,
                "cpu_kv_cache_gib": 1,
                "enforce_eager": True,
                "log_file": str(folder / "vllm.log"),
            },
        },
    }


def start(settings: dict[str, object], folder: Path) -> subprocess.Popen[bytes]:
    config = folder / "generator.json"  # JSON is YAML
    config.write_text(json.dumps(settings))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    with (folder / "generator.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "services.generator", "--config", str(config)],
            cwd=ROOT,
            env=environment,
            stderr=log,
        )


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The running generator with its vLLM, shared by all tests of the module."""
    folder = tmp_path_factory.mktemp("vllm")
    model = make_tiny_llm(folder / "tiny")
    process = start(settings_of(model, folder), folder)
    ready = folder / "ready.json"
    try:
        until = time.monotonic() + START_SECONDS
        while not ready.exists():
            log = (folder / "generator.log").read_text()
            assert process.poll() is None, log
            assert time.monotonic() < until, log
            time.sleep(0.2)
        ports = json.loads(ready.read_text())
        yield Running(process, ports["grpc"], f"http://{ports['http']}", model, folder / "generator.log")
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(150)


def client_of(generator: Running) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{generator.http}/v1", api_key="none", max_retries=0)


async def test_it_answers_from_passages_with_the_models_tokens_counted(generator: Running) -> None:
    async with GeneratorClient(generator.grpc) as client:
        short = await client.answer_from_context("Where?", [Passage("a", "T", "In Paris.")])
        long = await client.answer_from_context("Where?", [Passage("a", "T", "In Paris." * 20)])
    assert short.provenance.generator_model == "tiny"
    assert 0 < short.usage.completion_tokens <= 24
    # The tiny tokenizer has one token per byte.
    assert long.usage.prompt_tokens == short.usage.prompt_tokens + 19 * len("In Paris.")
    assert short.text


async def test_documents_beyond_the_models_length_do_not_reach_it(generator: Running) -> None:
    passages = [Passage(str(number), f"T{number}", "x" * 500) for number in range(10)]
    async with GeneratorClient(generator.grpc) as client:
        events = [event async for event in client.answer(Question("q", "Where?"), "direct")]
        answer = await client.answer_from_context("Where?", passages)
    assert events[-1].WhichOneof("event") == "final"
    assert answer.usage.prompt_tokens < 2048 - 24


async def test_the_judges_reply_is_restricted_to_yes_or_no(generator: Running) -> None:
    """A random model answers yes or no only if its output is constrained."""
    async with GeneratorClient(generator.grpc) as client:
        verdicts = await asyncio.gather(*(client.judge("Where?", f"place {n}", ["Paris"]) for n in range(6)))
        span = await client.judge("Where?", "in Paris", ["Paris"])
    assert {verdict.decided_by for verdict in verdicts} == {"judge"}
    assert (span.correct, span.decided_by) == (True, "span")
    async with httpx.AsyncClient(trust_env=False) as http:
        metrics = (await http.get(f"{generator.http}/metrics")).text
    assert "searchrl_generator_judge_unreadable_total 0.0" in metrics
    assert 'searchrl_generator_engine_up{engine="generator"} 1.0' in metrics


async def test_chat_completions_are_forwarded_complete_and_streamed(generator: Running) -> None:
    question: list[Any] = [{"role": "user", "content": "Hello"}]
    async with client_of(generator) as client:
        whole = await client.chat.completions.create(
            model="tiny", messages=question, max_tokens=6, temperature=0, logprobs=True, extra_body={"ignore_eos": True}
        )
        stream = await client.chat.completions.create(
            model="tiny",
            messages=question,
            max_tokens=6,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        chunks = [chunk async for chunk in stream]
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert whole.choices[0].message.content == streamed
    assert whole.choices[0].logprobs is not None
    assert len(whole.choices[0].logprobs.content or []) == 6
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 6


async def test_refusals_of_vllm_reach_the_client_unchanged(generator: Running) -> None:
    async with client_of(generator) as client:
        with pytest.raises(openai.BadRequestError, match="maximum context length"):
            await client.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "x" * 5000}], max_tokens=5
            )
        with pytest.raises(openai.NotFoundError) as caught:
            await client.chat.completions.create(model="other", messages=[{"role": "user", "content": "x"}])
    assert caught.value.code == "model_not_found"


async def test_a_policy_samples_token_ids_with_their_logprobs(generator: Running) -> None:
    tokenizer = ModelTokenizer.from_folder(generator.model_dir)
    prompt = tokenizer.render_prompt("Hello")
    async with RemotePolicy(generator.http, "tiny") as policy:
        first = await policy.generate(prompt, Sampling(max_tokens=8, seed=3), "r1")
        again = await policy.generate(prompt, Sampling(max_tokens=8, seed=3), "r2")
        greedy = await policy.generate(prompt, Sampling(max_tokens=8, temperature=0), "r3")
    assert first.ids == again.ids
    assert len(first.ids) == len(first.logprobs) == len(first.versions) > 0
    assert all(logprob < 0 for logprob in first.logprobs)
    assert greedy.finish_reason in ("stop", "length")


async def test_a_model_without_a_chat_template_ends_with_code_2_at_once(generator: Running, tmp_path: Path) -> None:
    model = make_tiny_llm(tmp_path / "mute", chat_template=False)
    process = start(settings_of(model, tmp_path), tmp_path)
    assert process.wait(60) == 2
    (line,) = (tmp_path / "generator.log").read_text().splitlines()
    assert "has no chat template" in line


async def test_a_server_killed_during_a_stream_is_an_error_and_is_restarted(generator: Running) -> None:
    children = psutil.Process(generator.process.pid).children(recursive=True)
    outcome = "complete"
    async with client_of(generator) as client:
        # 16 replies with log-probabilities take about 20 MB, more than all buffers on the way. After its first event
        # this test reads no further, so the stream is not complete when the server is killed, however late that is.
        stream = await client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "Hello"}],
            n=16,
            max_tokens=1500,
            logprobs=True,
            top_logprobs=5,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        chunks = aiter(stream)
        await anext(chunks)
        for child in children:
            child.kill()
        try:
            async for _ in chunks:
                pass
        except openai.APIError as error:
            outcome = str(error)
    # In any case before the outcome is judged, because the next test needs the server.
    await wait_until_restarted(generator)
    assert "middle" in outcome


async def wait_until_restarted(generator: Running) -> None:
    """Return once the generator has reported the loss of its model server, and then is ready again."""
    reasons: list[str] = []
    until = time.monotonic() + START_SECONDS
    async with httpx.AsyncClient(trust_env=False) as http:
        while not any("model server" in reason for reason in reasons) or reasons[-1] != "ok":
            assert time.monotonic() < until, reasons
            reasons.append((await http.get(f"{generator.http}/readyz")).json()["status"])
            await asyncio.sleep(0.2)


async def test_sigterm_lets_a_running_stream_finish_and_leaves_no_process(generator: Running) -> None:
    """Must run last: it ends the module's server."""
    children = psutil.Process(generator.process.pid).children(recursive=True)
    assert any("vllm" in " ".join(child.cmdline()).lower() for child in children)
    async with client_of(generator) as client:
        stream = await client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "Hello"}],
            max_tokens=300,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        chunks = aiter(stream)
        await anext(chunks)
        os.kill(generator.process.pid, signal.SIGTERM)
        usage = [chunk.usage async for chunk in chunks][-1]
    assert usage is not None
    assert usage.completion_tokens == 300
    assert await asyncio.to_thread(generator.process.wait, 60) == 0
    gone, alive = psutil.wait_procs(children, timeout=15)
    assert not alive
    assert len(gone) == len(children)
