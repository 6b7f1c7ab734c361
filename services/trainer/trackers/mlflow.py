"""Shows a run on an MLflow server, over its REST interface: settings, numbers, and trajectories as artifacts."""

import base64
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
from pydantic import Field, field_validator

from searchrl.errors import ConfigurationError
from searchrl.platform.settings import Section
from services.trainer.trackers.base import (
    SAMPLE_COLUMNS,
    KeptRun,
    RunEnd,
    TrackedStep,
    TrackerContext,
    check_address,
    read_secret,
    without_secrets,
)

logger = logging.getLogger(__name__)

API = "/api/2.0/mlflow"
ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
ARTIFACT_SCHEME = "mlflow-artifacts"
STATUSES = {RunEnd.FINISHED: "FINISHED", RunEnd.STOPPED: "KILLED", RunEnd.FAILED: "FAILED"}
PARAMETERS_PER_CALL = 100  # the server's limit
PARAMETER_CHARACTERS = 500  # the limit of older servers; newer ones take 6,000
PAUSES = (1.0, 4.0)
"""Before the second and the third attempt: a restart of the server's process; a longer outage costs the step."""
TRY_AGAIN = frozenset({429, 502, 503, 504})


class MlflowSettings(Section):
    """Where an MLflow server shows the run."""

    address: str = Field(
        default="", description="http or https address of the server; empty: the variable MLFLOW_TRACKING_URI."
    )
    experiment: str = Field(default="searchrl", min_length=1, description="Experiment of the run; created if missing.")
    key_file: Path | None = Field(
        default=None,
        description="File with a token, or with user:password; None: MLFLOW_TRACKING_TOKEN, or "
        "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, if they are set.",
    )
    timeout_seconds: float = Field(default=30.0, gt=0, description="Longest time of one call.")

    @field_validator("address")
    @classmethod
    def _check_address(cls, value: str) -> str:
        return check_address(value, "logging.mlflow.address")


class MlflowTracker:
    """Writes one MLflow run, which a resumed run continues."""

    def __init__(
        self, settings: MlflowSettings, context: TrackerContext, sleep: Callable[[float], object] = time.sleep
    ) -> None:
        address = settings.address or os.environ.get("MLFLOW_TRACKING_URI", "")
        try:
            check_address(address, "MLFLOW_TRACKING_URI")
        except ValueError as error:
            raise ConfigurationError(f"logging.trackers names mlflow: {error}") from error
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigurationError(
                f"logging.trackers names mlflow: logging.mlflow.address has to be the http address of a server, such "
                f"as http://mlflow:5000, and is '{address}'"
            )
        key = _read_key(settings)
        headers = _authorization(key)
        secrets = (key, key.rpartition(":")[2], *(value.rpartition(" ")[2] for value in headers.values()))
        self._secrets = [part for part in secrets if part]
        self._client = httpx.Client(base_url=address.rstrip("/"), headers=headers, timeout=settings.timeout_seconds)
        self._settings = settings
        self._context = context
        self._sleep = sleep
        self._run: KeptRun = context.kept_run("mlflow")
        self._artifacts: str | None = None

    def open(self, after_step: int) -> None:
        """See ``Tracker``."""
        run_id = self._run.id
        if run_id is None:
            started = self._start()
            run_id = str(started["run_id"])
            self._run.start(run_id)
            self._log_parameters(run_id)
        else:
            self._post("/runs/update", {"run_id": run_id, "status": "RUNNING"})
            started = self._call("GET", f"{API}/runs/get", params={"run_id": run_id})["run"]["info"]
        self._artifacts = _artifact_path(str(started["artifact_uri"]))

    def record(self, step: TrackedStep) -> None:
        """See ``Tracker``."""
        if not self._run.take(step):
            return
        now = int(step.time * 1000)
        metrics = [
            {"key": name, "value": _number(value), "timestamp": now, "step": step.step}
            for name, value in step.numbers.items()
        ]
        self._post("/runs/log-batch", {"run_id": self._run.id, "metrics": metrics})
        if step.samples and self._artifacts is not None:
            table = {"columns": SAMPLE_COLUMNS, "data": step.rows}
            path = f"{self._artifacts}/samples/step_{step.step:06d}.json"
            self._call("PUT", f"{ARTIFACTS}/{quote(path)}", content=json.dumps(table, ensure_ascii=False).encode())

    def close(self, end: RunEnd) -> None:
        """See ``Tracker``."""
        update = {"run_id": self._run.id, "status": STATUSES[end], "end_time": int(time.time() * 1000)}
        self._post("/runs/update", update)
        self._client.close()

    def _start(self) -> Mapping[str, Any]:
        body = {
            "experiment_id": self._find_experiment(),
            "run_name": self._context.name,
            "start_time": int(time.time() * 1000),
            "tags": [{"key": "mlflow.source.name", "value": "searchrl"}],
        }
        # Not repeated: an answer that was lost may have been that of a run which then stays empty.
        return self._call("POST", f"{API}/runs/create", json=body, pauses=())["run"]["info"]

    def _find_experiment(self) -> str:
        name = self._settings.experiment
        found = self._call("GET", f"{API}/experiments/get-by-name", params={"experiment_name": name}, missing=404)
        if not found:
            found = {"experiment": self._post("/experiments/create", {"name": name})}
        return str(found["experiment"]["experiment_id"])

    def _log_parameters(self, run_id: str) -> None:
        # Of a new run alone: MLflow refuses to change a parameter, and a resumed run may change its settings.
        found = [{"key": key, "value": text[:PARAMETER_CHARACTERS]} for key, text in _flatten(self._context.config)]
        for first in range(0, len(found), PARAMETERS_PER_CALL):
            params = found[first : first + PARAMETERS_PER_CALL]
            self._post("/runs/log-batch", {"run_id": run_id, "params": params})

    def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return self._call("POST", f"{API}{path}", json=body)

    def _call(
        self, method: str, path: str, *, missing: int = 0, pauses: tuple[float, ...] = PAUSES, **arguments: Any
    ) -> dict[str, Any]:
        """Return the answer; empty for the status ``missing``.

        Raises:
            httpx.HTTPError: the server cannot be reached, or refuses the call; the message holds no key.
        """
        # Calls may be repeated: for the server the same value of the same step and time is one value.
        for pause in (*pauses, None):
            try:
                response = self._client.request(method, path, **arguments)
            except httpx.TransportError:
                if pause is None:
                    raise
            else:
                if response.status_code == missing:
                    return {}
                if response.status_code not in TRY_AGAIN or pause is None:
                    return self._read(response)
            self._sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    def _read(self, response: httpx.Response) -> dict[str, Any]:
        if not response.is_success:  # a redirection, too: to the login page of a proxy, where nothing was recorded
            text = response.text
            for secret in self._secrets:  # a server may say which token is wrong
                text = text.replace(secret, "***")
            raise httpx.HTTPStatusError(
                f"{response.request.url.path} answered {response.status_code} {' '.join(text[:200].split())}",
                request=response.request,
                response=response,
            )
        return response.json() if response.content else {}


def _read_key(settings: MlflowSettings) -> str:
    """Return a token, or user:password; empty if there is neither."""
    key = read_secret(settings.key_file, "logging.mlflow.key_file")
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    if not key and user:
        key = f"{user}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}"
    return key or os.environ.get("MLFLOW_TRACKING_TOKEN", "")


def _authorization(key: str) -> dict[str, str]:
    if not key:
        return {}
    # A colon is in no token, and in every pair of user and password.
    is_pair = ":" in key
    return {"Authorization": f"Basic {base64.b64encode(key.encode()).decode()}" if is_pair else f"Bearer {key}"}


def _artifact_path(uri: str) -> str | None:
    """Return the path under which the server takes artifacts; None if they go past it, into a bucket for example."""
    parts = urlsplit(uri)
    if parts.scheme == ARTIFACT_SCHEME:
        return parts.path.strip("/")
    logger.warning(
        "the tracker mlflow shows no sampled trajectories: the server keeps artifacts at %s and takes none itself "
        "(mlflow server --serve-artifacts does)", without_secrets(uri),
    )  # fmt: skip
    return None


def _flatten(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", str(value)


def _number(value: float) -> float | str:
    # JSON has no such numbers; the server reads these words, which are those of protobuf.
    if math.isnan(value):
        return "NaN"
    return value if math.isfinite(value) else ("Infinity" if value > 0 else "-Infinity")
