"""Records which services run in a folder: written by ``up``, read by ``status``, ``down`` and ``ask``."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from searchrl.errors import ConfigurationError
from searchrl.platform.processes import is_running
from searchrl.storage.durable_files import atomic_write, try_lock

DEFAULT_FOLDER = Path("runs/up")
RECORD_FILE = "up.json"
LOCK_FILE = "up.lock"


@dataclass(frozen=True, slots=True)
class ServiceRecord:
    """The last known state of one service, by its supervisor."""

    state: str
    pid: int | None = None
    http: str = ""
    grpc: str = ""
    restarts: int = 0
    exit_code: int | None = None
    log: str = ""

    @property
    def is_fine(self) -> bool:
        """Whether this is a ready service, or a job, such as training, that has succeeded."""
        return self.state == "ready" or (self.state == "ended" and self.exit_code == 0)


@dataclass(frozen=True, slots=True)
class Instance:
    """Content of ``up.json``. ``started`` is the supervisor's process start time, which reveals a reused pid."""

    folder: str
    supervisor_pid: int
    started: float
    state: str
    searchrl_version: str
    inputs: Mapping[str, str] = field(default_factory=dict)
    services: Mapping[str, ServiceRecord] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Read the record in ``folder``; None if there is none.

        Raises:
            ConfigurationError: the file is not such a record.
        """
        path = folder / RECORD_FILE
        try:
            content: dict[str, Any] = json.loads(path.read_text())
            services = {name: ServiceRecord(**row) for name, row in content.pop("services").items()}
            return cls(**content, services=services)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigurationError(f"{path} is not a record of 'searchrl up'; remove it and start again") from error

    @property
    def is_alive(self) -> bool:
        """Whether the supervisor that wrote this record is still running."""
        # A killed supervisor leaves its record behind, and its process id may belong to another program by now.
        return is_running(self.supervisor_pid, self.started)

    def write(self) -> None:
        """Replace the record in its folder atomically, so that readers never see a part of it."""
        atomic_write(Path(self.folder) / RECORD_FILE, json.dumps(asdict(self), indent=2) + "\n", durable=False)


def running_instance(folder: Path) -> Instance:
    """Return the running instance in ``folder``.

    Raises:
        ConfigurationError: nothing is running there.
    """
    instance = Instance.read(folder)
    if instance is None:
        raise ConfigurationError(f"nothing was started in {folder}: run 'searchrl up --folder {folder}' first")
    if not instance.is_alive:
        raise ConfigurationError(
            f"the services in {folder} have ended: start them again with 'searchrl up --folder {folder}'"
        )
    return instance


@contextlib.contextmanager
def acquire_lock(folder: Path) -> Iterator[None]:
    """Lock the folder for one supervisor; the kernel releases the lock when the process ends, however it ends.

    Raises:
        ConfigurationError: another supervisor holds it, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The file is never removed: a process that has opened the old file and one that creates a new one would each
        # hold a lock, but not the same one.
        lock = (folder / LOCK_FILE).open("w")
    except OSError as error:
        raise ConfigurationError(f"cannot write into {folder}: {error.strerror}") from error
    with lock:
        if not try_lock(lock):
            raise ConfigurationError(
                f"services are running in {folder} already: see 'searchrl status --folder {folder}', "
                f"stop them with 'searchrl down --folder {folder}', or choose another --folder"
            )
        yield
