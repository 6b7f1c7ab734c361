"""A base URL of an OpenAI-compatible server becomes the addresses of its routes."""

import pytest

from searchrl.clients.openai_url import OpenAIServerUrl
from searchrl.errors import ConfigurationError


@pytest.mark.parametrize(
    ("base_url", "chat"),
    [
        ("http://llm:8000", "http://llm:8000/v1/chat/completions"),
        ("http://llm:8000/", "http://llm:8000/v1/chat/completions"),
        ("http://llm:8000/v1", "http://llm:8000/v1/chat/completions"),
        ("https://llm/v1/", "https://llm/v1/chat/completions"),
        ("https://llm/v1/chat/completions", "https://llm/v1/chat/completions"),
        (
            "https://x.openai.azure.com/openai/deployments/gpt-5?api-version=2024-10-21",
            "https://x.openai.azure.com/openai/deployments/gpt-5/chat/completions?api-version=2024-10-21",
        ),
        ("https://g.googleapis.com/v1beta/openai/", "https://g.googleapis.com/v1beta/openai/chat/completions"),
        ("https://api.example/paas/v4", "https://api.example/paas/v4/chat/completions"),
        ("http://[::1]:8000", "http://[::1]:8000/v1/chat/completions"),
    ],
)
def test_a_path_is_kept_and_a_bare_host_gets_v1(base_url: str, chat: str) -> None:
    assert OpenAIServerUrl(base_url).endpoint("/chat/completions") == chat


@pytest.mark.parametrize("base_url", ["", "llm:8000", "ftp://llm", "http://", "http://llm:port", "http://[::1"])
def test_an_invalid_address_is_refused_with_the_reason(base_url: str) -> None:
    with pytest.raises(ConfigurationError, match="is not a URL"):
        OpenAIServerUrl(base_url)
