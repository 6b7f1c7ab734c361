"""Defines the settings that all jobs of a cluster share: images, storage, secrets, placement and time limits."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from searchrl.errors import ConfigurationError

DATA = "/data"
KEYS_FOLDER = "/etc/searchrl/keys"
TLS_FOLDER = "/etc/searchrl/tls"
KEYS_FILE, CLIENT_KEY_FILE = f"{KEYS_FOLDER}/keys", f"{KEYS_FOLDER}/client-key"

LABEL_CHARACTERS = 63
"""Kubernetes' limit of a label's value."""
_RUN_ID = re.compile(r"[a-z0-9]([-a-z0-9]{0,48}[a-z0-9])?")
"""At most 50 characters, fewer than a label can hold."""


@dataclass(frozen=True, slots=True)
class JobSettings:
    """Settings that all jobs of one cluster share; the defaults fit a release named searchrl.

    Attributes:
        release: the Helm release whose services the jobs call.
        image: a complete image reference, instead of registry, service and tag.
        claim: the volume claim mounted at /data; empty: the release's.
        auth_secret: Secret with ``client-key`` (and ``keys``, for the trainer's own API); empty: no keys are sent.
        tls_secret: Secret with ``ca.crt``, the authority of the services' certificates; empty: no TLS.
        queue: Kueue's local queue; the job waits, suspended, until it is admitted.
        gpus: devices of the container that computes; 0: none.
        retries: failures after which a job has failed; evictions do not count. 6 is Kubernetes' own default.
        keep_seconds: how long a finished job stays visible; three days cover a weekend.
    """

    release: str = "searchrl"
    namespace: str = ""
    registry: str = "localhost"
    tag: str = "dev"
    image: str = ""
    pull_policy: str = "IfNotPresent"
    pull_secret: str = ""
    claim: str = ""
    auth_secret: str = ""
    tls_secret: str = ""
    queue: str = ""
    queue_priority: str = ""
    priority_class: str = ""
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, str], ...] = ()
    gpus: int = 0
    gpu_resource: str = "nvidia.com/gpu"
    runtime_class: str = ""
    cpu: str = ""
    memory: str = ""
    grace_seconds: int | None = None
    deadline_seconds: int | None = None
    retries: int = 6
    keep_seconds: int = 3 * 86_400

    def __post_init__(self) -> None:
        if self.tag == "latest" or self.image.endswith(":latest"):
            raise ConfigurationError("the image tag 'latest' changes under a running job: name a version or a digest")
        if self.image and not re.search(r"(:[\w][\w.-]*|@sha256:[0-9a-f]{64})$", self.image):
            raise ConfigurationError(f"the image {self.image} needs a tag or a digest")
        if self.gpus < 0 or self.retries < 0:
            raise ConfigurationError("--gpus and --retries cannot be negative")

    def image_of(self, service: str) -> str:
        """Return the reference of a service's image."""
        return self.image or f"{self.registry}/searchrl/{service}:{self.tag}"

    @property
    def claim_name(self) -> str:
        return self.claim or f"{self.release}-data"

    @property
    def claim_label(self) -> str:
        """The claim's name as a label's value, cut as the chart cuts it: a claim's name can be longer than a label."""
        if len(self.claim_name) <= LABEL_CHARACTERS:
            return self.claim_name
        # The digest distinguishes claims that differ only after the cut: 54 characters, a dash and 8 digits are 63.
        digest = hashlib.sha256(self.claim_name.encode()).hexdigest()[:8]
        return f"{self.claim_name[: LABEL_CHARACTERS - 9].removesuffix('-').removesuffix('.')}-{digest}"

    def target(self, service: str) -> str:
        """Return the gRPC address of a service of the release."""
        # Headless, because gRPC sends all calls over one connection: behind a cluster IP they would all reach one pod,
        # while this name resolves to every pod, and the client balances them.
        return f"{self.release}-{service}-headless:9090"


def check_run_id(run_id: str) -> str:
    """Return the run id, which becomes a label and a folder name, if it is valid.

    Raises:
        ConfigurationError: it is not a short name of lower-case letters, digits and dashes.
    """
    if not _RUN_ID.fullmatch(run_id):
        raise ConfigurationError(f"run id {run_id!r}: write at most 50 lower-case letters, digits and dashes")
    return run_id


def data_path(kind: str, name: str) -> str:
    """Return ``/data/questions/world/train.jsonl`` for ``world/train.jsonl`` of kind questions; absolute paths stay.

    Raises:
        ConfigurationError: the path leaves the shared storage.
    """
    path = name if name.startswith("/") else f"{DATA}/{kind}/{name}"
    if ".." in path.split("/") or not path.startswith(f"{DATA}/"):
        raise ConfigurationError(f"{name}: jobs see nothing but {DATA}")
    return path
