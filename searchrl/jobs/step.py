"""Describes one job independently of Kubernetes: its programs, their sizes and their needs."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Size:
    """Requests and limits of a container; memory is limited to what is requested."""

    cpu: str = "250m"
    memory: str = "2Gi"


@dataclass(frozen=True, slots=True)
class Program:
    """A program of one of the images.

    Attributes:
        service: the service whose image contains the program.
        http_port: port of its readiness probe; None if it is not a server.
        client_key: environment variable that receives the API key; empty if it needs none.
    """

    name: str
    service: str
    command: tuple[str, ...]
    size: Size = Size()
    http_port: int | None = None
    ports: Mapping[str, int] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    client_key: str = ""
    on_gpu: bool = False


@dataclass(frozen=True, slots=True)
class Engines:
    """vLLM servers that sample the rollouts of a training run, each in a pod of its own.

    Attributes:
        count: number of servers.
        model: folder of the model that they load; the trainer replaces its weights.
        gpus: devices of each; 0: it runs on CPUs.
        kv_cache_gib: KV cache on CPUs; on GPUs vLLM takes what the weights leave.
        image: a complete image reference; empty: the release's generator image, which has vLLM.
    """

    count: int
    model: str
    gpus: int
    dtype: str
    size: Size
    kv_cache_gib: int = 0
    image: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """One step on the way from a corpus to a served searcher.

    Attributes:
        name: its name on the command line, such as train.
        run_id: name of the result; starting the same run again continues it, or finds it finished.
        component: value of the component label, by which network policies select pods.
        beside: programs that run as long as the main one, each started once the one before it is ready.
        grace_seconds: from SIGTERM to SIGKILL; Kubernetes' default is 30. A step that saves its state on SIGTERM needs
            more, or it loses the work since its last checkpoint.
        calls_services: it calls services of the release, with keys and TLS if the release has them.
        workers: further pods, whose learner ranks the main one directs through Ray.
        engines: pods that sample for it; None: it samples by itself.
    """

    name: str
    run_id: str
    component: str
    program: Program
    beside: tuple[Program, ...] = ()
    grace_seconds: int = 30
    calls_services: bool = False
    workers: int = 0
    worker_size: Size = Size()
    engines: Engines | None = None
