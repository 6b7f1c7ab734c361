"""Defines the settings of an engine."""

from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, SecretStr

from searchrl.model_server.settings import VllmSettings
from searchrl.platform.settings import Section


class ChatEngineSettings(Section):
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
    structured_outputs: bool = Field(
        default=False, description="kind url: the server supports vLLM's structured_outputs."
    )
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
    # Ten times ``timeout_seconds``: it bounds a stream whose model never stops writing.
    stream_seconds: PositiveFloat = Field(
        default=600.0, description="Longest forwarded stream; each event must arrive within timeout_seconds."
    )
    attempts: PositiveInt = Field(default=5, description="Attempts at a generation that fails for a temporary reason.")
    vllm: VllmSettings = Field(default=VllmSettings(), description="kind vllm: the process to start.")

    def secret_headers(self) -> dict[str, str]:
        """Return the further headers of requests, readable."""
        return {name: value.get_secret_value() for name, value in self.headers.items()}

    def secret_key(self) -> str | None:
        """Return the key of requests, readable."""
        return None if self.key is None else self.key.get_secret_value()
