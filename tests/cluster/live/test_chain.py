"""From a corpus to a served searcher by jobs alone, each reading from the shared storage what the previous one wrote.

Install without data -> small world -> index -> baselines -> training -> evaluation -> publication -> upgrade and
rollback.
"""

import json
import re
import shlex
import subprocess
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from searchrl.platform.processes import SIGTERM_EXIT
from tests.cluster.live.cluster_objects import evict
from tests.cluster.live.conftest import CHART, Release
from tests.cluster.live.job_chain import CPU, SMALL, JobChain, has_ray_operator
from tests.cluster.live.releases import PRESET, new_namespace

pytestmark = pytest.mark.timeout(900)  # above the default: fixtures wait for several jobs one after another
WORLD = ("--set", "train_worlds=2", "--set", "test_worlds=1", "--set", "questions_per_world=40")
TAUGHT = ("submit", "sft", "--run-id", "taught", "--set", "demonstrations=60", *SMALL)
BASELINES = "/data/baselines"
DAMAGED = f"{BASELINES}/damaged/baseline.json does not match its checksum in manifest.json; write it again"
STEPS, GROUPS, GROUP_SIZE = 8, 4, 4  # steps enough to evict and to delete a training pod in between
TRAINING = (
    "--baseline", "small-world", "--set", "reward.kind=gain_beyond_rag", "--set", f"steps={STEPS}",
    "--set", f"rollouts.groups_per_step={GROUPS}", "--set", f"rollouts.group_size={GROUP_SIZE}",
    "--set", "checkpoints.every=0",  # only at an interruption and at the end
)  # fmt: skip
DIGEST = """
import json, pathlib, sys
from searchrl.storage.artifact_manifest import verify_input

print(json.dumps(verify_input(pathlib.Path(sys.argv[1]))))
"""
ROLL_SECONDS = 60.0  # helm has waited for the new pods by then; the clients only have to find them
ASK = Path(__file__).with_name("ask_steadily.py")


class Runs(NamedTuple):
    """Training runs under way: the names of their jobs by run id, and the pod of the Ray head that was evicted."""

    chain: JobChain
    jobs: dict[str, str]
    evicted_head: str


@pytest.fixture(scope="module")
def release_without_data(cluster: None) -> Iterator[JobChain]:
    """A release without data, for which jobs have to make them."""
    pytest.importorskip("kubernetes")
    with new_namespace() as namespace:
        release = Release("searchrl", namespace)  # the name for which deploy/jobs is written
        size = f"requests.cpu={CPU}"
        sizes = ("--set", f"workload.resources.{size}", "--set", f"engines.searcher.resources.{size}")
        release.helm("install", release.name, str(CHART), *PRESET, "--set", "smallWorld.enabled=false", *sizes)
        yield JobChain(release)


@pytest.fixture(scope="module")
def indexed_world(release_without_data: JobChain) -> JobChain:
    """The small world, its index, and the release that waited for both; supervised training of a model has started."""
    assert "written" in release_without_data.searchrl("submit", "small-world", *WORLD, *SMALL, "--follow")
    index = release_without_data.create("index.yaml")
    release_without_data.open_storage()
    release_without_data.done(index)
    release_without_data.submit(*TAUGHT[1:])
    release_without_data.release.kubectl("wait", "deployment", "--all", "--for=condition=Available", "--timeout=180s")
    return release_without_data


@pytest.fixture(scope="module")
def finished_baseline(indexed_world: JobChain) -> JobChain:
    indexed_world.done(indexed_world.create("baseline.yaml"))
    return indexed_world


@pytest.fixture(scope="module")
def started_runs(finished_baseline: JobChain) -> Runs:
    """One run in one pod, one on each kind of Ray cluster, and one with a damaged baseline; all at once."""
    chain, jobs, head = finished_baseline, {}, ""
    if has_ray_operator():
        operator = ("train", "--run-id", "operator", "--ranks", "2", "--backend", "rayjob", *TRAINING, *SMALL)
        jobs["operator"] = chain.submit(*operator)
        # Ray gives a node 30 s to start, then its pod ends: next to all other runs it would need several attempts.
        chain.wait_for(lambda: chain.ready_pods("operator") >= 3, "a head and two ranks")
        # Before the other runs are submitted: on a busy machine this one could be done meanwhile.
        head = chain.trainer_after("operator", 1, "ray.io/node-type=head")
        evict(chain.release.namespace, head)
    jobs["small-world"] = chain.submit("train", *TRAINING, *SMALL)
    jobs["indexed"] = chain.submit("train", "--run-id", "indexed", "--ranks", "1", *TRAINING, *SMALL)
    damage = f"cd {BASELINES} && cp -r small-world damaged && echo >>damaged/baseline.json"
    chain.release.kubectl("exec", "storage", "--", "sh", "-c", damage)
    jobs["damaged"] = chain.submit("train", "--run-id", "damaged", *TRAINING, "--baseline", "damaged", *SMALL)
    return Runs(chain, jobs, head)


@pytest.fixture(scope="module")
def trained_run(started_runs: Runs) -> JobChain:
    """The run small-world, finished: its log is followed to the end."""
    assert "done" in started_runs.chain.searchrl("runs", "logs", "small-world", "--step", "train").splitlines()[-1]
    return started_runs.chain


@pytest.fixture(scope="module")
def published_searcher(trained_run: JobChain) -> tuple[JobChain, str]:
    """The chain with the trained searcher published, and the command that the job printed."""
    log = trained_run.done(trained_run.create("publish.yaml")).log
    found = re.search(r"^\s*(helm upgrade RELEASE CHART .*)$", log, re.MULTILINE)
    assert found, log
    return trained_run, found.group(1)


def test_what_jobs_write_is_what_the_release_serves(indexed_world: JobChain) -> None:
    for folder in ("corpora/small-world", "questions/small-world", "models/small-world-searcher"):
        indexed_world.is_verified(folder)
    with asking(indexed_world, until="v0") as answers:
        pass
    assert answers[0]["answer"] and answers[0]["policy_version"] == "v0"


def test_a_step_that_is_done_ends_at_once(indexed_world: JobChain) -> None:
    assert "exists already" in indexed_world.searchrl("submit", "small-world", *WORLD, *SMALL, "--follow")
    generations = indexed_world.read("indexes/small-world/CURRENT")
    assert "nothing to build" in indexed_world.done(indexed_world.create("index.yaml")).log
    assert indexed_world.read("indexes/small-world/CURRENT") == generations


def test_demonstrations_teach_a_new_model(indexed_world: JobChain) -> None:
    indexed_world.searchrl("runs", "logs", "taught", "--step", "sft")
    indexed_world.is_verified("models/taught")
    assert "models/taught is done" in indexed_world.searchrl(*TAUGHT, "--follow")


def test_a_baseline_names_what_it_was_made_of(finished_baseline: JobChain) -> None:
    finished_baseline.is_verified("baselines/small-world")
    made = json.loads(finished_baseline.read("baselines/small-world/manifest.json"))
    questions = json.loads(finished_baseline.read("questions/small-world/manifest.json"))
    assert made["inputs"]["questions"] == questions["files"]["train.jsonl"]["sha256"]


@pytest.fixture(scope="module")
def run_without_ray_head(started_runs: Runs) -> JobChain:
    """The chain after the evicted head of the operator's Ray cluster has ended, one step or more into the run."""
    if "operator" not in started_runs.jobs:
        message = "NO KUBERAY: the cluster does not serve ray.io/v1, so RayJob is not tested; install its operator"
        warnings.warn(pytest.PytestWarning(message), stacklevel=1)
        pytest.skip(message)
    chain = started_runs.chain
    chain.release.kubectl("wait", f"pod/{started_runs.evicted_head}", "--for=delete", "--timeout=150s")
    return chain


def test_a_ray_head_that_is_evicted_saves_the_steps_that_it_did(run_without_ray_head: JobChain) -> None:
    done = len(run_without_ray_head.steps("operator"))
    assert 0 < done < STEPS
    assert run_without_ray_head.read("runs/operator/checkpoints/latest").strip() == f"step_{done}"


def test_a_pod_that_is_evicted_or_deleted_costs_no_group_no_step_and_no_retry(started_runs: Runs) -> None:
    """The job may not fail once (``--retries 0``); the run has only the checkpoints that SIGTERM writes."""
    chain = started_runs.chain
    job = chain.submit("train", "--run-id", "disturbed", "--retries", "0", *TRAINING, *SMALL)
    pod = chain.trainer_after("disturbed", 1)
    assert chain.termination_of(pod, lambda: evict(chain.release.namespace, pod)) == (
        "EvictionByEvictionAPI",
        SIGTERM_EXIT,
    )
    first = chain.steps("disturbed")
    pod = chain.trainer_after("disturbed", len(first) + 1)
    deletion = ("delete", "pod", pod, "--wait=false")
    assert chain.termination_of(pod, lambda: chain.release.kubectl(*deletion)) == ("", SIGTERM_EXIT)
    kept = chain.steps("disturbed")
    assert len(first) < len(kept) < STEPS and kept[: len(first)] == first
    chain.done(job)
    assert chain.steps("disturbed")[: len(kept)] == kept, "no step was trained again"
    check_run(chain, "disturbed")


def test_a_damaged_file_stops_the_next_step_with_one_sentence(started_runs: Runs) -> None:
    """The sentence is in the pod's termination message and in ``runs status``; nothing is retried."""
    chain = started_runs.chain
    outcome = chain.ended(started_runs.jobs["damaged"])
    assert (outcome.state, outcome.reason) == ("Failed", "PodFailurePolicy")
    pods = json.loads(chain.release.kubectl("get", "pods", "-l", "searchrl.io/run=damaged", "-o", "json"))["items"]
    ((ended,),) = (pod["status"]["containerStatuses"] for pod in pods)
    assert ended["state"]["terminated"]["exitCode"] == 2
    assert ended["state"]["terminated"]["message"].strip().splitlines()[-1] == f"trainer: {DAMAGED}"
    assert DAMAGED in chain.searchrl("runs", "status", "damaged", code=1)
    questions = ("--questions", "small-world/train.jsonl")
    chain.done(chain.submit("baseline", "--run-id", "damaged", *questions, *SMALL))  # what the message advises
    chain.is_verified("baselines/damaged")


def test_a_run_trains_every_group_once(trained_run: JobChain) -> None:
    check_run(trained_run, "small-world")


def test_a_run_that_was_disturbed_ends_with_the_same_weights(trained_run: JobChain) -> None:
    assert len({trained_run.steps(run_id)[-1]["fingerprint"] for run_id in ("disturbed", "small-world")}) == 1


def test_an_indexed_job_trains_with_ray(started_runs: Runs) -> None:
    started_runs.chain.done(started_runs.jobs["indexed"])
    check_run(started_runs.chain, "indexed")


def test_a_new_ray_cluster_continues_where_the_evicted_head_ended(
    run_without_ray_head: JobChain, started_runs: Runs
) -> None:
    run_without_ray_head.ray_done(started_runs.jobs["operator"], clusters=2)
    check_run(run_without_ray_head, "operator")


def check_run(chain: JobChain, run_id: str) -> None:
    """Require each step once, each group once with all its rollouts, and a complete model."""
    assert [line["step"] for line in chain.steps(run_id)] == list(range(1, STEPS + 1))
    rollouts = chain.rollouts(run_id)
    assert len(rollouts) == STEPS * GROUPS * GROUP_SIZE
    assert set(rollouts) == {(group_id, index) for group_id in range(STEPS * GROUPS) for index in range(GROUP_SIZE)}
    chain.is_verified(f"runs/{run_id}/final")


def test_an_evaluation_finds_the_trained_searcher_before_it_is_served(trained_run: JobChain) -> None:
    trained_run.done(trained_run.create("evaluate.yaml"))
    trained_run.is_verified("evaluations/small-world")
    report = json.loads(trained_run.read("evaluations/small-world/report.json"))
    assert set(report["methods"]) == {"direct", "rag", "s3"}
    of = json.loads(trained_run.read("evaluations/small-world/manifest.json"))["inputs"]
    assert of["final"] == json.loads(trained_run.python(DIGEST, "/data/runs/small-world/final"))


def test_one_value_serves_the_trained_searcher_and_a_rollback_the_old_one(
    published_searcher: tuple[JobChain, str],
) -> None:
    """Questions are asked throughout, inside the cluster: none fails and none waits for the new pods."""
    chain, command = published_searcher
    words = shlex.split(command.replace("RELEASE", chain.release.name).replace("CHART", str(CHART)))[1:]
    assert sum(word == "--set" for word in words) == 1
    with asking(chain, until=f"v{STEPS}") as answers:
        chain.release.helm(*words, "--wait", "--timeout", "300s")
    check_roll(answers, first="v0", last=f"v{STEPS}")
    with asking(chain, until="v0") as answers:
        chain.release.helm("rollback", chain.release.name, "1", "--wait", "--timeout", "300s")
    check_roll(answers, first=f"v{STEPS}", last="v0")


def check_roll(answers: list[dict[str, Any]], *, first: str, last: str) -> None:
    """Require that one checkpoint answers until the other does, without a gap or an error."""
    assert not [answer for answer in answers if answer["error"]]
    versions = [answer["policy_version"] for answer in answers]
    assert (versions[0], versions[-1], set(versions)) == (first, last, {first, last})
    # A question that waits for the new pods waits for most of the roll; on a busy machine every answer takes longer.
    gaps = [after["time"] - before["time"] for before, after in pairwise(answers)]
    assert max(gaps) < (answers[-1]["time"] - answers[0]["time"]) / 2, gaps


@contextmanager
def asking(chain: JobChain, *, until: str) -> Iterator[list[dict[str, Any]]]:
    """Ask question after question during the block, and afterwards until this policy version answers."""
    kubectl = ["kubectl", "-n", chain.release.namespace, "exec", "-i", "storage", "--"]
    question = chain.read("questions/small-world/test.jsonl").splitlines()[0]
    target = f"{chain.release.name}-generator-headless:9090"
    command = [*kubectl, "python", "-c", ASK.read_text(), target, question]
    program = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None and program.stdin is not None
    answers = [json.loads(program.stdout.readline())]
    try:
        yield answers
        end = time.monotonic() + ROLL_SECONDS
        while answers[-1]["policy_version"] != until and time.monotonic() < end:
            answers.append(json.loads(program.stdout.readline()))
    finally:
        rest, _ = program.communicate("\n", timeout=120)
        answers += map(json.loads, rest.splitlines())
