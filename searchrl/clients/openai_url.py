"""Derives the endpoint addresses of an OpenAI-compatible server from its base URL."""

from urllib.parse import urlsplit, urlunsplit

from searchrl.errors import ConfigurationError

_ENDPOINTS = ("/chat/completions", "/completions")


class OpenAIServerUrl:
    """The root of a server's API, and the addresses below it.

    A bare host gets OpenAI's ``/v1``. An address with a path is used as it is, because not every server ends in
    ``/v1``: Azure has ``/openai/deployments/NAME``, Gemini ``/v1beta/openai``. A query string (Azure's
    ``api-version``) is kept at the end of every address. The address of an
    endpoint stands for its root.
    """

    def __init__(self, base_url: str) -> None:
        """Parse ``base_url``.

        Raises:
            ConfigurationError: it is not the address of an HTTP server.
        """
        try:
            parts = urlsplit(base_url.strip())
            # ``urlsplit`` itself checks the port only when it is read.
            _ = parts.port  # raises ValueError for a port that is no number
        except ValueError as error:
            raise ConfigurationError(f"base_url: '{base_url}' is not a URL: {error}") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigurationError(f"base_url: '{base_url}' is not a URL; it must begin with http:// or https://")
        path = parts.path.rstrip("/")
        for endpoint in _ENDPOINTS:
            path = path.removesuffix(endpoint)
        self._parts = parts._replace(path=path or "/v1", fragment="")

    @property
    def root(self) -> str:
        """The address without an endpoint, e.g. ``http://host:8000/v1``."""
        return urlunsplit(self._parts)

    def endpoint(self, path: str) -> str:
        """Return the address of an endpoint, given its path, such as "/chat/completions"."""
        return urlunsplit(self._parts._replace(path=self._parts.path + path))
