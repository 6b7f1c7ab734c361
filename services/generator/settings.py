"""Defines every setting of the generator, with its name, default and meaning."""

from pathlib import Path
from typing import Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SecretStr,
)
from pydantic_settings import SettingsConfigDict

from searchrl.platform.service_settings import Section, ServiceSettings


class VllmServer(Section):
    """The vLLM process that ``engine.kind: vllm`` starts."""

    executable: Path = Field(default=Path(".venv-vllm/bin/vllm"), description="The command, in its own environment.")
    model: str = Field(default="", description="Model folder, or name on a hub.")
    served_name: str = Field(default="", description="Name of the model in the API; if empty, its folder's name.")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(default="auto", description="Type of the weights.")
    max_model_len: PositiveInt | None = Field(default=None, description="Longest prompt and reply together, in tokens.")
    max_num_seqs: PositiveInt = Field(default=64, description="Requests computed together.")
    tensor_parallel_size: PositiveInt = Field(default=1, description="GPUs that share one model.")
    gpu_memory_utilization: PositiveFloat = Field(default=0.9, le=1, description="Share of GPU memory; unused on CPUs.")
    cpu_kv_cache_gib: NonNegativeInt = Field(default=0, description="KV cache on CPUs in GiB; 0 on GPUs.")
    enforce_eager: bool = Field(default=False, description="Skip compilation: starts faster, runs slower.")
    chat_template: Path | None = Field(default=None, description="Jinja file for a model without a chat template.")
    extra_flags: list[str] = Field(default=[], description="Further flags of `vllm serve`.")
    log_file: Path = Field(default=Path("runs/vllm.log"), description="Where the process writes its log.")
    start_seconds: PositiveFloat = Field(default=600.0, description="Time to load the model and generate once.")
    shutdown_seconds: NonNegativeInt = Field(
        default=5, description="Time to exit after SIGTERM; requests are drained before."
    )


class Engine(Section):
    """Where generations come from."""

    kind: Literal["reader", "url", "vllm"] = Field(
        default="reader",
        description="The small world's reader, any OpenAI-compatible server, or a supervised vLLM process.",
    )
    base_url: str = Field(
        default="", description="kind url: the server; a bare host gets /v1, an address with a path is used unchanged."
    )
    model: str = Field(default="", description="kind url: the model's name there.")
    key: SecretStr | None = Field(default=None, description="kind url: API key of the server.")
    headers: dict[str, SecretStr] = Field(
        default={}, description="kind url: further headers of every request, such as Azure's api-key."
    )
    structured_outputs: bool = Field(default=False, description="kind url: the server takes vLLM's structured_outputs.")
    chat_template_kwargs: dict[str, Any] = Field(
        default={}, description="Variables of the chat template, such as enable_thinking: false."
    )
    extra_body: dict[str, Any] = Field(
        default={}, description="Further fields of each request that the service writes; they override its own."
    )
    token_field: Literal["auto", "max_tokens", "max_completion_tokens"] = Field(
        default="auto", description="Field that limits a reply; auto: max_tokens, until the server asks for the other."
    )
    temperature_field: Literal["auto", "send", "omit"] = Field(
        default="auto", description="Whether temperature is sent; auto: until the server refuses it."
    )
    stream_options: Literal["auto", "send", "omit"] = Field(
        default="auto", description="Whether streams ask for their usage; auto: until the server refuses it."
    )
    system_role: Literal["auto", "send", "fold"] = Field(
        default="auto", description="fold: system text goes into the user message; auto: once the server refuses it."
    )
    sampling_fields: Literal["auto", "send", "omit"] = Field(
        default="auto",
        description="Whether neutral top_k, min_p, penalties are sent against a model's own defaults; auto: to vLLM.",
    )
    thoughts: Literal["auto", "inside", "outside"] = Field(
        default="auto",
        description="Whether replies start inside a thought that the prompt opened; auto: learned from replies.",
    )
    probe: bool = Field(
        default=True, description="Request one word at start and after failures; readiness follows the result."
    )
    timeout_seconds: PositiveFloat = Field(default=60.0, description="Time for one generation, retries included.")
    stream_seconds: PositiveFloat = Field(
        default=600.0, description="Longest forwarded stream; each event must arrive within timeout_seconds."
    )
    attempts: PositiveInt = Field(default=5, description="Attempts at a generation that fails for a temporary reason.")
    vllm: VllmServer = Field(default=VllmServer(), description="kind vllm: the process to start.")


class JudgeSettings(Section):
    """How answers are judged that the rules cannot decide."""

    engine: Engine | None = Field(default=None, description="A separate engine; if absent, the generator's.")
    cached_verdicts: NonNegativeInt = Field(default=100_000, description="Verdicts kept in memory; 0 keeps none.")
    max_tokens: PositiveInt = Field(default=1024, description="Longest reply of the judge, thoughts included.")


class Context(Section):
    """What the generator reads and writes."""

    top_k: PositiveInt = Field(default=3, description="Passages per search of rag and the controls.")
    max_tokens: PositiveInt = Field(default=6000, description="Budget of the documents in one prompt.")
    max_answer_tokens: PositiveInt = Field(default=128, description="Longest answer.")
    temperature: NonNegativeFloat = Field(default=0.0, description="Sampling temperature of the generator.")
    template_file: Path | None = Field(
        default=None,
        description="{documents} only: the system message; with {question}: the user message; if absent, built-in.",
    )
    tokenizer_dir: Path | None = Field(
        default=None, description="Model folder whose tokenizer counts the budget; if absent, estimated from words."
    )


class Searcher(Section):
    """The searcher that s3 or search_r1 runs."""

    model_dir: Path = Field(description="Model folder with the tokenizer and searcher.json.")
    base_url: str = Field(description="OpenAI-compatible server that serves the searcher with token ids.")
    model: str = Field(description="The searcher's name there.")
    key: SecretStr | None = Field(default=None, description="API key of that server.")
    temperature: NonNegativeFloat = Field(default=0.0, le=2, description="Used if a question names none; 0 is greedy.")
    timeout_seconds: PositiveFloat = Field(default=60.0, description="Time for one turn, retries included.")


class Retriever(Section):
    """Where passages come from."""

    target: str = Field(description="host:port of the retriever's gRPC server.")
    key: SecretStr | None = Field(default=None, description="API key of the retriever.")
    mode: Literal["", "bm25", "dense", "hybrid"] = Field(default="", description="If empty, the index's default.")
    timeout_seconds: PositiveFloat = Field(default=30.0, description="Time for one search, retries included.")


class Limits(Section):
    """Admission and sizes."""

    max_answers: PositiveInt = Field(default=64, description="Questions answered concurrently; more are refused.")
    max_generations: PositiveInt = Field(
        default=1024, description="Other generations run concurrently; more are refused."
    )
    answer_seconds: PositiveFloat = Field(default=120.0, description="Time for one question.")
    max_top_k: PositiveInt = Field(default=50, description="Largest top_k of a question.")
    max_searches: PositiveInt = Field(default=20, description="Largest max_searches of a question.")
    max_question_characters: PositiveInt = Field(default=8000, description="Longest question.")
    max_conversation_characters: PositiveInt = Field(
        default=100_000, description="Longest system text and earlier turns of a chat with a searching model."
    )


class GeneratorSettings(ServiceSettings):
    """The generator: the frozen language model, the judge, and online answering."""

    model_config = SettingsConfigDict(env_prefix="GENERATOR_")

    engine: Engine = Field(default=Engine(), description="Where generations come from.")
    judge: JudgeSettings = Field(default=JudgeSettings(), description="The judge.")
    context: Context = Field(default=Context(), description="What the generator reads and writes.")
    searcher: Searcher | None = Field(default=None, description="The searcher of s3 or search_r1, if any.")
    retriever: Retriever | None = Field(
        default=None, description="Where passages come from; if absent, only direct is served."
    )
    limits: Limits = Field(default=Limits(), description="Admission and sizes.")
