"""Forms a Ray cluster from the pods of one indexed Job: ``ray_cluster --rendezvous DIR --workers N -- COMMAND``.

Pod 0 starts Ray's head, waits until every worker has joined, and runs the trainer; the others hold learner ranks, and
with ``--rank-on-head`` so does pod 0. They meet through files on shared storage: ``head.json`` says where the head is
and whether the run has ended, ``worker-I.json`` that worker I has joined, with a heartbeat number that grows while it
lives. A replaced pod joins again by itself; if a worker is lost in the middle of a step, the head waits for its
replacement and starts the trainer again, which continues from its last checkpoint.
"""

import argparse
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from searchrl.platform.processes import SIGTERM_EXIT, Interrupted, exit_on_sigterm
from searchrl.platform.telemetry.logging_setup import set_up_logging
from services.trainer.cluster.rendezvous import Rendezvous

logger = logging.getLogger(__name__)

PORT = 6379
"""Ray's own default for its head."""
HEARTBEAT_SECONDS = 1.0
"""Between two heartbeats of a worker, each of which writes a small file to shared storage."""
LOST_SECONDS = 10.0
"""Without a new heartbeat for so long, a worker is lost: ten beats, so that a pause of the storage is not a loss."""
REMIND_SECONDS = 30.0
"""Between two log lines about missing workers, which may have to wait for machines."""
FAILED = 1
"""Exit code of a trainer that failed while it ran, e.g. because a rank was lost; also of Ray that does not start."""
START_ATTEMPTS = 3  # Ray gives its processes 30 s to start, and a busy machine may need more
FINAL = (0, 2)
"""Exit codes after which the trainer is not started again: 0, done; 2, cannot run as configured."""


def run_head(
    rendezvous: Rendezvous, workers: int, command: Sequence[str], address: str, *, has_rank: bool = False
) -> int:
    """Start Ray, run the trainer until it is done, fails or is interrupted; return its exit code.

    A failed trainer is started again only if a worker was lost meanwhile; otherwise the failure is its own.

    Args:
        has_rank: a learner rank may be placed in this pod, beside the trainer.
    """
    # A number per start of the head: files that workers of an earlier head left are not taken for members.
    session = uuid.uuid4().hex
    host = address.rpartition(":")[0]
    # Without CPUs nothing is placed in the head's pod: the trainer runs there, and the ranks belong on the workers.
    cpus = () if has_rank else ("--num-cpus=0",)
    _start_ray("--head", f"--node-ip-address={host}", f"--port={address.rpartition(':')[2]}", *cpus,
               "--include-dashboard=false")  # fmt: skip
    code = SIGTERM_EXIT
    try:
        rendezvous.publish_head({"session": session, "address": address})
        while True:
            members = _wait_for_workers(rendezvous, workers, session)
            code = _run_trainer(command, address)
            if code != FAILED or _are_alive(rendezvous, session, members):
                return code
            logger.warning("a worker was lost: the trainer continues from its last checkpoint once there is another")
    finally:
        # If the head failed or was evicted, the Job starts its pod again, and the workers must still be there: they
        # complete only once the run is over, and the Job would not start a completed index again.
        rendezvous.publish_head({"session": session, "over": code in FINAL, "code": code})
        _ray("stop")


def _wait_for_workers(rendezvous: Rendezvous, workers: int, session: str) -> frozenset[str]:
    """Wait until all workers have joined and are alive; return their names."""
    reminded = time.monotonic()
    while True:
        # Joined is not enough: the file of a worker that was killed stays, until its replacement overwrites it.
        members = frozenset(rendezvous.list_joined(session))
        if len(members) == workers and _are_alive(rendezvous, session, members):
            return members
        if time.monotonic() - reminded > REMIND_SECONDS:
            reminded = time.monotonic()
            logger.info("%d of %d workers have joined", len(members), workers)
        time.sleep(HEARTBEAT_SECONDS / 2)


def _are_alive(rendezvous: Rendezvous, session: str, members: frozenset[str]) -> bool:
    """Whether the workers are still these, and each has a new heartbeat within ``LOST_SECONDS``."""
    before = rendezvous.list_joined(session)
    deadline = time.monotonic() + LOST_SECONDS
    while (now := rendezvous.list_joined(session)).keys() == members:
        if all(now[worker] != before.get(worker) for worker in members):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(HEARTBEAT_SECONDS / 4)
    return False


def _run_trainer(command: Sequence[str], address: str) -> int:
    """Run the trainer and return its exit code; ``SIGTERM_EXIT`` if a signal ended it before it was done."""
    trainer = subprocess.Popen(list(command), env={**os.environ, "RAY_ADDRESS": address})
    try:
        code = trainer.wait()
    except Interrupted:
        # Kubernetes signals the container's main process only, which is this one. The trainer saves a checkpoint and
        # ends by itself; until then the pod must not end.
        trainer.send_signal(signal.SIGTERM)
        code = trainer.wait()
        return code if code in FINAL else SIGTERM_EXIT
    return code if code >= 0 else 128 - code  # as shells report a signal: 137 for SIGKILL, e.g. of the OOM killer


def run_worker(rendezvous: Rendezvous, index: int) -> int:
    """Follow the head, through its restarts, until it publishes that the run has ended.

    A restarted head has a new session, so the worker ends the Ray process of the old one and joins again.
    """
    # ``worker`` is new with every start of the pod, so that the head notices a replacement that kept its index: the
    # heartbeats of that index continue, but the learner rank of the old pod is lost.
    raylet: subprocess.Popen[bytes] | None = None
    worker, session, beat = uuid.uuid4().hex, "", 0
    try:
        while not (head := rendezvous.head()).get("over"):
            address, wanted = str(head.get("address", "")), str(head.get("session", ""))
            if raylet is not None and (wanted != session or raylet.poll() is not None):
                _stop_raylet(raylet)
                raylet = None
            if raylet is None and address:
                raylet, session = _start_raylet(address), wanted
            if raylet is not None:
                beat += 1
                rendezvous.heartbeat(index, worker, session, beat)
            time.sleep(HEARTBEAT_SECONDS)
        return 0
    finally:
        rendezvous.leave(index)
        if raylet is not None:
            _stop_raylet(raylet)


def _start_raylet(address: str) -> subprocess.Popen[bytes]:
    logger.info("joining %s", address)
    # ``--block``: the process lives as long as the node's Ray processes, so ``poll`` shows when they have ended.
    return subprocess.Popen(["ray", "start", f"--address={address}", "--block"], stdout=subprocess.DEVNULL)


def _stop_raylet(raylet: subprocess.Popen[bytes]) -> None:
    raylet.terminate()
    try:
        raylet.wait(timeout=10)  # then killed: it holds nothing that must be saved
    except subprocess.TimeoutExpired:
        raylet.kill()
        raylet.wait()
    _ray("stop")


def _start_ray(*arguments: str) -> None:
    for _ in range(START_ATTEMPTS):
        if _ray("start", *arguments):
            return
        _ray("stop")
    raise SystemExit(FAILED)


def _ray(*arguments: str) -> bool:
    done = subprocess.run(["ray", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        logger.error("ray %s: %s", arguments[0], (done.stderr or done.stdout).strip()[-2000:])
    return done.returncode == 0


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: the trainer's in pod 0; 0 in the others once it is done; 143 if a signal ended the pod."""
    parser = argparse.ArgumentParser(prog="python -m services.trainer.cluster.ray_cluster", description=__doc__)
    parser.add_argument("--rendezvous", type=Path, required=True, help="folder on shared storage")
    parser.add_argument("--workers", type=int, required=True, help="pods besides the head")
    parser.add_argument("--group", default=os.environ.get("RAY_GROUP", "group"), help="name of this Job among others")
    parser.add_argument("--index", type=int, default=int(os.environ.get("JOB_COMPLETION_INDEX", "0")), help="this pod")
    parser.add_argument("--port", type=int, default=PORT, help="port of the head")
    parser.add_argument("--rank-on-head", action="store_true", help="the head's pod holds a learner rank, too")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- and the trainer's command")
    arguments = parser.parse_args(argv)
    set_up_logging("ray_cluster", "text")
    rendezvous = Rendezvous(arguments.rendezvous / arguments.group, arguments.workers)
    if arguments.index:
        return run_worker(rendezvous, arguments.index)
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    host = os.environ.get("POD_IP") or socket.gethostbyname(socket.gethostname())
    address = f"{host}:{arguments.port}"
    return run_head(rendezvous, arguments.workers, command, address, has_rank=arguments.rank_on_head)


if __name__ == "__main__":
    exit_on_sigterm()
    sys.exit(main())
