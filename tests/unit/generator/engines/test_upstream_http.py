"""How failed calls of an engine's server are reported."""

import aiohttp
import pytest

from searchrl.errors import Unavailable
from services.generator.engines.upstream_http import translate_errors


@pytest.mark.parametrize("error", [OSError(), aiohttp.ClientPayloadError()])
def test_a_failure_without_a_message_is_reported_by_its_type(error: Exception) -> None:
    with pytest.raises(Unavailable) as raised, translate_errors("the engine cannot be reached"):
        raise error
    assert str(raised.value) == f"the engine cannot be reached: {type(error).__name__}"


def test_a_failure_with_a_message_is_reported_by_its_message() -> None:
    with pytest.raises(Unavailable, match=r"^no answer: connection reset$"), translate_errors("no answer"):
        raise OSError("connection reset")
