"""Runs every check of a run before it starts. A failed check does not end the others, and nothing is written."""

import os
import shutil
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from searchrl.agent.profile import SearcherProfile
from searchrl.clients.service_client import read_key
from searchrl.domain.question import Question
from searchrl.errors import ConfigurationError
from searchrl.platform.capacity import check_disk, main_memory, size_text
from searchrl.platform.findings import Finding, FindingState, finding_of
from searchrl.platform.settings import Listen
from searchrl.storage.artifact_manifest import verify_input
from searchrl.tokenization.model_tokenizer import ModelTokenizer
from services.trainer import wiring
from services.trainer.engines.torch_engine import TorchEngineSettings
from services.trainer.engines.vllm.settings import VllmEngineSettings
from services.trainer.learner.device import require_device
from services.trainer.preflight.plan import describe_batches, describe_run
from services.trainer.preflight.service_checks import check_services
from services.trainer.preflight.sizes import (
    RunSizes,
    check_complete,
    count_parameters,
    estimate_sizes,
    read_model_config,
)
from services.trainer.preflight.speed import describe_time, estimate_step, measure_speed
from services.trainer.rewards.generation import read_baseline
from services.trainer.rollouts.mixture import read_sources
from services.trainer.rollouts.task_source import TaskSource
from services.trainer.runs.run_folder import RunFolder, is_run_finished
from services.trainer.settings import RunConfig
from services.trainer.validation.questions import find_shared, read_validation_questions


@dataclass(slots=True)
class _Inputs:
    """What the checks of files read and later checks use."""

    profile: SearcherProfile | None = None
    parameters: int = 0
    questions: Sequence[Question] = field(default_factory=tuple)
    can_connect: bool = True
    sizes: RunSizes | None = None


class RunChecks(NamedTuple):
    """What was found, and the table of the run's batches and memory; empty if an input cannot be read."""

    findings: list[Finding]
    table: str


async def check_run(config: RunConfig, listen: Listen, new: bool = False) -> RunChecks:
    """Check inputs, machine and services. ``new``: fail if the folder holds a run already."""
    inputs = _Inputs()
    findings = [
        finding_of(
            "model", lambda: _check_model(config, inputs), "see 'What a model folder needs' in docs/training.md"
        ),
        finding_of(
            "questions", lambda: _check_questions(config, inputs), "correct the file or the setting that names it"
        ),
    ]
    if config.validation.questions is not None and inputs.questions:
        advice = "correct the file, or see 'Validation' in docs/training.md"
        findings.append(finding_of("validation", lambda: _check_validation(config, inputs), advice))
    if config.reward.baselines is not None and inputs.questions:
        findings.append(
            finding_of(
                "baseline",
                lambda: _check_baseline(config, inputs),
                "python -m services.evaluator.commands.build_baseline",
            )
        )
    if config.services.key_file is not None:
        findings.append(finding_of("key file", lambda: _check_key(config, inputs), "name a file that can be read"))
    findings.append(_check_run_folder(config, new))
    findings.append(finding_of("trackers", lambda: _check_trackers(config), "see 'Trackers' in docs/training.md"))
    findings.append(
        finding_of("device", lambda: _check_device(config), "set learner.device to a device of this machine")
    )
    if isinstance(config.engine, VllmEngineSettings):
        servers = config.engine
        findings.append(finding_of("engine", lambda: _check_servers(servers), "run `make install-vllm`"))
    findings += _check_capacity(config, inputs)
    findings += _check_time(config, inputs)
    findings.append(_check_ports(listen))
    if inputs.questions and inputs.can_connect:
        # Without a profile the number of passages is unknown, and the check of the model has reported why.
        top_k = wiring.naive_top_k(config, inputs.profile) if inputs.profile is not None else None
        findings += await check_services(config, wiring.connect(config), inputs.questions, top_k)
    return RunChecks(findings, _draw_table(config, inputs))


def _check_model(config: RunConfig, inputs: _Inputs) -> str:
    profile = wiring.read_profile(config)
    ModelTokenizer.of_searcher(config.model)
    verify_input(config.model)
    parameters = count_parameters(config.model)
    check_complete(config.model, parameters)
    inputs.parameters = parameters
    inputs.profile = profile
    return f"{config.model}, {inputs.parameters / 1e6:.1f} million parameters, protocol {profile.protocol}"


def _check_questions(config: RunConfig, inputs: _Inputs) -> str:
    source = TaskSource.mix(read_sources(config.question_sets), config.seed)
    inputs.questions = source.questions
    for one in config.question_sets.values():
        verify_input(one.questions)
    if source.shares:
        return f"{len(inputs.questions)} in {len(config.mixture)} sets, drawn in turn: {source.shares}"
    return f"{len(inputs.questions)} in {', '.join(str(one.questions) for one in config.question_sets.values())}"


def _check_validation(config: RunConfig, inputs: _Inputs) -> str:
    path, reward = config.validation.questions, config.validation_reward
    assert path is not None
    questions = read_validation_questions(config.validation, inputs.questions)
    verify_input(path)
    if reward.baselines is not None:
        verify_input(reward.baselines)
        read_baseline(reward.baselines, questions)
    shared = len(find_shared(questions, inputs.questions))
    return f"{len(questions)} in {path}" + (f", {shared} of them are trained on" if shared else "")


def _check_baseline(config: RunConfig, inputs: _Inputs) -> str:
    path = config.reward.baselines
    assert path is not None
    verify_input(path)
    read_baseline(path, inputs.questions)
    return f"every question is in {path}"


def _check_key(config: RunConfig, inputs: _Inputs) -> str:
    assert config.services.key_file is not None
    inputs.can_connect = False  # until the key is read: without it, connecting to the services raises
    read_key(config.services.key_file)
    inputs.can_connect = True
    return str(config.services.key_file)


def _check_run_folder(config: RunConfig, new: bool) -> Finding:
    folder = RunFolder(config.output)
    if not folder.holds_run:
        return Finding("run folder", FindingState.OK, f"{config.output} holds no run yet")
    if new:
        return Finding(
            "run folder", FindingState.FAILED, f"{config.output} holds a run already", "choose another output"
        )
    if is_run_finished(config):
        return Finding(
            "run folder",
            FindingState.WARNING,
            f"{config.output} holds this run, done",
            "raise steps, or choose another output",
        )
    return Finding("run folder", FindingState.OK, f"{config.output} holds a run, which is continued")


def _check_trackers(config: RunConfig) -> str:
    wiring.build_run_trackers(config)
    unused = [f"logging.{name} has no effect" for name in config.logging.list_unused()]
    return "; ".join([", ".join(["metrics.jsonl", *config.logging.trackers]), *unused])


def _check_device(config: RunConfig) -> str:
    name, ranks = config.learner.device, config.learner.ranks
    count = torch.cuda.device_count()
    if ranks and name == "cuda":
        return f"{ranks} ranks take a GPU each, of the Ray cluster's; this machine has {count}"
    device = require_device(name)
    return f"{device}: {torch.cuda.get_device_name(device)}" if device.type == "cuda" else "cpu"


def _check_servers(settings: VllmEngineSettings) -> str:
    if settings.urls:
        return f"{len(settings.urls)} running servers, which are asked when the run starts"
    if settings.placement == "ray":
        gpus = f"of {settings.gpus_per_replica} GPUs each" if settings.gpus_per_replica else "on CPUs"
        return f"{settings.replicas} servers {gpus}, which are placed in the Ray cluster when the run starts"
    if shutil.which(str(settings.server.executable)) is None:
        raise ConfigurationError(f"engine.server.executable: no command {settings.server.executable}")
    return f"{settings.replicas} servers of {settings.server.executable}"


def _check_capacity(config: RunConfig, inputs: _Inputs) -> list[Finding]:
    """Check memory and disk; if the model cannot be read, only whether the folder can be written."""
    what = "checkpoints and the final model"
    if inputs.profile is None:
        return [check_disk(config.output, 0, what)]
    try:
        sizes = estimate_sizes(config, inputs.parameters, inputs.profile.limits.max_context_tokens)
    except ConfigurationError as error:
        return [Finding("memory", FindingState.FAILED, str(error), "correct the model folder")]
    # The estimate covers all checkpoints of the run: those of an earlier process are part of it and on the disk
    # already.
    written = sum(path.stat().st_size for path in config.output.glob("checkpoints/**/*") if path.is_file())
    disk = check_disk(config.output, max(0, sizes.disk - written), what)
    if disk.state is FindingState.FAILED and config.checkpoints.keep > 1:
        disk = disk._replace(advice=f"{disk.advice}, or set checkpoints.keep below {config.checkpoints.keep}")
    inputs.sizes = sizes
    return [*_check_memory(config, sizes), disk]


def _check_time(config: RunConfig, inputs: _Inputs) -> list[Finding]:
    """Count the batches, and time a layer of the model, unless an earlier check has failed to read what this needs."""
    if inputs.profile is None or inputs.sizes is None or not inputs.questions:
        return []
    found = describe_batches(config, len(inputs.questions))
    tokens = inputs.profile.limits.max_context_tokens
    try:
        described = read_model_config(config.model).get_text_config()
        speed = measure_speed(config, described, tokens)
        step = estimate_step(config, speed, described.num_hidden_layers, tokens)
        expected = describe_time(step, config.steps, tokens)
    except (ConfigurationError, ValueError, RuntimeError) as error:  # torch reports what a GPU lacks as a RuntimeError
        expected = f"not estimated: {error}"
    return [Finding("batches", FindingState.OK, found), Finding("time", FindingState.OK, expected)]


def _draw_table(config: RunConfig, inputs: _Inputs) -> str:
    if inputs.profile is None or inputs.sizes is None or not inputs.questions:
        return ""
    limits, questions = inputs.profile.limits, len(inputs.questions)
    return describe_run(config, inputs.sizes, inputs.parameters, limits.max_context_tokens, questions)


def _check_memory(config: RunConfig, sizes: RunSizes) -> list[Finding]:
    """Check main memory, where the engine samples, and GPU memory if the learner is on one."""
    # Servers of vLLM check their own memory when they start, and may run on other machines.
    slots = config.engine.slots if isinstance(config.engine, TorchEngineSettings) else 0
    pool = slots * sizes.slot
    learner, weights = sizes.learner, sizes.engine + sizes.push
    processes = max(1, config.learner.ranks)
    captured = processes * sizes.captured
    engine = f"engine {size_text(weights)}, KV pool {size_text(pool)} (engine.slots {slots})"
    memory = main_memory()
    if not config.learner.device.startswith("cuda"):
        needed = processes * learner + captured + weights + pool
        parts = f"learner {size_text(processes * learner)}{_checkpoint_part(captured)}, {engine}"
        return [
            _compare_with_free(
                "memory", needed, memory.total, memory.available, parts, _advise(sizes, memory.total, needed, slots)
            )
        ]
    offloaded = sizes.offloaded * processes
    needed = weights + pool + offloaded + captured
    parts = f"{engine}, offloaded {size_text(offloaded)}" if offloaded else engine
    parts += _checkpoint_part(captured)
    advice = _advise(sizes, memory.total, needed, slots)
    found = [_compare_with_free("memory", needed, memory.total, memory.available, parts, advice)]
    device = torch.device(config.learner.device)
    if (device.index or 0) < torch.cuda.device_count():  # else the device check reports it, or Ray has other GPUs
        free, total = torch.cuda.mem_get_info(device)
        advice = "more learner.ranks, learner.gradient_checkpointing, or a smaller learner.token_budget or model"
        found.append(_compare_with_free("GPU memory", learner, total, free, "learner", advice))
    return found


def _checkpoint_part(captured: int) -> str:
    return f", checkpoint in writing {size_text(captured)} (checkpoints.background)" if captured else ""


def _advise(sizes: RunSizes, total: int, needed: int, slots: int) -> str:
    """Advise fewer engine slots if the KV pool is what does not fit."""
    # Everything but the slots is fixed, and the rest is shared among them. Example: of 16 GiB 10 are fixed, and a slot
    # takes 0.05 GiB: (16 - 10) / 0.05 = 120 slots fit.
    fitting = (total - (needed - slots * sizes.slot)) // sizes.slot
    if fitting >= slots:
        return "end other processes"
    if fitting > 0:
        return f"set engine.slots to {fitting} or less, or lower limits.max_context_tokens in searcher.json"
    return "a smaller model, learner.gradient_checkpointing, or a machine with more memory"


def _compare_with_free(subject: str, needed: int, total: int, free: int, parts: str, advice: str) -> Finding:
    found = f"at least {size_text(needed)} needed: {parts}; {size_text(free)} of {size_text(total)} free"
    # More than the machine has can never work. More than is free at the moment may: another process can end before the
    # run needs it, so this is only a warning.
    if needed > total:
        return Finding(subject, FindingState.FAILED, f"NOT ENOUGH: {found}", advice)
    if needed > free:
        return Finding(subject, FindingState.WARNING, found, advice)
    return Finding(subject, FindingState.OK, found)


def _check_ports(listen: Listen) -> Finding:
    """Check that the run's own servers can listen."""
    taken = {name: reason for name in ("http_port", "grpc_port") if (reason := _find_bind_failure(listen, name))}
    if not taken:
        return Finding(
            "ports", FindingState.OK, f"{listen.host}:{listen.http_port} and :{listen.grpc_port} (0: any free one)"
        )
    found = ", ".join(f"cannot listen on {listen.host}:{getattr(listen, name)}: {taken[name]}" for name in taken)
    names = " and ".join(f"listen.{name}" for name in taken)
    return Finding("ports", FindingState.FAILED, found, f"set {names} to a free port, or to 0 for any")


def _find_bind_failure(listen: Listen, name: str) -> str:
    """Return why the port of this name cannot be bound; empty if it can."""
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    try:
        # It sets SO_REUSEADDR, as the HTTP server does: a port whose last connections are still in TIME_WAIT counts as
        # free.
        with socket.create_server((listen.host, getattr(listen, name)), family=family):
            return ""
    except OSError as error:
        return os.strerror(error.errno) if error.errno else str(error)
