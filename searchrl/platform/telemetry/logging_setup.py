"""Formats log records as one JSON object per line, with request and trace id, or as text for people."""

import json
import logging
import sys
import time

from searchrl.platform.request_context import request_id
from searchrl.platform.telemetry.tracing import trace_id


class JsonFormatter(logging.Formatter):
    """Renders a record as one JSON object; ``extra={"data": {...}}`` adds fields."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id():
            line["request_id"] = request_id()
        if trace_id():
            line["trace_id"] = trace_id()
        extra = getattr(record, "data", None)
        if isinstance(extra, dict):
            line.update(extra)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        # ``default=str``: a path or an exception among the fields must not lose the record. A lone surrogate does not
        # raise either, because standard error escapes what it cannot encode (``backslashreplace``).
        return json.dumps(line, ensure_ascii=False, default=str)


def set_up_logging(service: str, log_format: str = "json", level: str = "INFO") -> None:
    """Send every log record of this process to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    if log_format == "json":
        handler.setFormatter(JsonFormatter(service))
    else:
        handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)-7s {service} %(name)s: %(message)s"))
    # ``force`` removes handlers that imported libraries have added to the root, which would print each record twice.
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # These libraries log every request at INFO.
    for noisy in ("httpx", "httpx2", "httpcore", "uvicorn.access", "openai"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
