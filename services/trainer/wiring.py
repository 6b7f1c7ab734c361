"""Builds a training service from its configuration."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial

import yaml

from searchrl.agent.profile import PROFILE_FILE, SearcherProfile
from searchrl.agent.types import Limits
from searchrl.clients.coalescing_searcher import CoalescingSearcher
from searchrl.clients.generator_client import GeneratorClient
from searchrl.clients.retriever_client import RetrieverClient
from searchrl.clients.service_client import read_key
from searchrl.contracts.v1 import trainer_pb2 as pb
from searchrl.contracts.v1.trainer_pb2_grpc import add_TrainerServicer_to_server
from searchrl.domain.question import Question
from searchrl.errors import ConfigurationError, ServiceError
from searchrl.platform.health import Health
from searchrl.platform.server.auth import KeyRing
from searchrl.platform.server.serve import ServiceSpec
from searchrl.tokenization.model_files import tokenizer_hash
from searchrl.tokenization.model_tokenizer import ModelTokenizer
from services.trainer.checkpoints.checkpoint_store import CheckpointStore
from services.trainer.checkpoints.checkpoint_writer import CheckpointWriter
from services.trainer.cluster.placement import RunPlacement
from services.trainer.engines import ENGINES
from services.trainer.engines.base import EngineContext, RolloutEngine
from services.trainer.grpc_servicer import TrainerServicer
from services.trainer.http_routes import rest_router
from services.trainer.learner.device import LoraSettings
from services.trainer.learner_thread import OWNER as LEARNER
from services.trainer.learner_thread import LearnerThread
from services.trainer.metrics import TrainerMetrics
from services.trainer.rewards import REWARDS, RewardSettings
from services.trainer.rollouts.circuit_breaker import CircuitBreaker
from services.trainer.rollouts.finished_rollouts import OWNER as FINISHED_ROLLOUTS
from services.trainer.rollouts.finished_rollouts import FinishedRollouts
from services.trainer.rollouts.mixture import read_sources
from services.trainer.rollouts.orchestrator import Orchestrator
from services.trainer.rollouts.rollout_worker import RewardScorer, RolloutWorker
from services.trainer.rollouts.task_source import TaskSource
from services.trainer.runs.run_folder import RunFolder
from services.trainer.runs.run_identity import describe_identity
from services.trainer.runs.run_logger import RunLogger
from services.trainer.runs.run_state import RunState
from services.trainer.runs.service_pins import Services, ask_generator, check_baseline, pin_services
from services.trainer.settings import RunConfig
from services.trainer.trackers.base import TrackerContext
from services.trainer.trackers.build import build_trackers
from services.trainer.trackers.tracker_thread import TrackerThread
from services.trainer.training_loop import RunParts, TrainingLoop
from services.trainer.training_service import TrainingService
from services.trainer.validation.questions import read_validation_questions
from services.trainer.validation.validator import Validator, validation_name
from services.trainer.validation_schedule import ValidationSchedule

ADMIN_METHODS = frozenset({"Pause", "Resume", "SaveCheckpoint", "Stop"})
PROTOCOLS_WITHOUT_ANSWER = ("s3",)
"""Protocols whose searcher only gathers documents."""


def connect(config: RunConfig) -> Services:
    """Build the clients of the retriever and, if the reward needs it, the generator."""
    targets = config.services
    key = read_key(targets.key_file)
    retriever = RetrieverClient(
        targets.retriever, key=key, timeout_seconds=targets.timeout_seconds, mode=targets.retrieval_mode
    )
    generator = None
    if config.reward.needs_generator and targets.generator is not None:
        generator = GeneratorClient(targets.generator, key=key, timeout_seconds=targets.timeout_seconds)

    async def index_generation(question: Question) -> str:
        _, generation = await retriever.search_with_generation([question.retrieval_query], 1, question.filters)
        return generation

    # Rollouts that decode together often search in the same tick of the event loop; joined, that is one call. The
    # generation is asked for past the joining searcher, which returns only results.
    return Services(CoalescingSearcher(retriever), generator, index_generation)


def read_profile(config: RunConfig) -> SearcherProfile:
    """Read the searcher's profile and apply the run's temperature.

    Raises:
        ConfigurationError: the model folder has no profile, or it samples in a way that training cannot follow.
    """
    path = config.model / PROFILE_FILE
    if not config.model.is_dir():
        raise ConfigurationError(f"there is no model folder {config.model}")
    if not path.is_file():
        raise ConfigurationError(
            f"{config.model} has no {PROFILE_FILE}, which defines how the searcher is prompted and sampled; "
            "'searchrl profile' writes it"
        )
    profile = SearcherProfile.from_json(path.read_text(encoding="utf-8"))
    profile = replace(profile, temperature=config.temperature or profile.temperature)
    if profile.top_p < 1:
        raise ConfigurationError("training needs top_p 1: tokens outside the kept set would have no log-probability")
    if config.reward.scores_own_answer and profile.protocol in PROTOCOLS_WITHOUT_ANSWER:
        raise ConfigurationError(
            f"reward.kind {config.reward.kind} scores the searcher's own answer, and a searcher of protocol "
            f"{profile.protocol} gives none: every reward would be 0; use generation_accuracy or gain_beyond_rag"
        )
    if profile.temperature <= 0:
        raise ConfigurationError("training needs a temperature above 0: set temperature in the run file")
    limits = profile.limits
    if config.reward.needs_generator and limits.max_searches == 0 and profile.initial_top_k == 0:
        raise ConfigurationError(
            "the searcher neither searches nor is shown documents (max_searches and initial_top_k in searcher.json "
            "are 0): the generator would answer without documents, whatever the searcher does"
        )
    config.reward.check()
    config.reward.overlong.build(config.overlong_penalty, limits.max_sampled_tokens)  # raises if it has no use
    return profile


def build_service(
    config: RunConfig, services: Services, metrics: TrainerMetrics, health: Health | None = None
) -> TrainingService:
    """Build all parts of a run; nothing starts yet.

    Raises:
        ConfigurationError: the model, the questions, the profile or the baselines cannot be used.
    """
    profile = read_profile(config)
    source = TaskSource.mix(read_sources(config.question_sets), config.seed, config.curriculum)
    questions = source.questions
    settings = config.rollouts
    held_out = read_validation_questions(config.validation, questions)
    breaker = CircuitBreaker(build_probe(services, questions[0]), settings.circuit_breaker)
    rewards = build_rewards(config, config.reward, services, questions, breaker, metrics, profile.limits)
    folder = RunFolder(config.output)
    placement = RunPlacement(config.learner.places(), config.engine.places())
    engine = build_engine(config, profile, folder, placement, metrics, health)
    finished = FinishedRollouts(
        folder.untrained,
        lockstep=settings.max_staleness == 0,
        health=health,
        count=metrics.thread_failures.labels(owner=FINISHED_ROLLOUTS).inc,
    )
    worker = RolloutWorker(
        engine, services.searcher, ModelTokenizer.of_searcher(config.model), profile, rewards, settings, config.seed,
        finished=finished,
        on_failure=lambda error: metrics.record_failed_call("rollout", error),
    )  # fmt: skip
    orchestrator = Orchestrator(
        source, worker, engine, settings, breaker,
        max_replaced=(config.algorithm.sample_batches - 1) * settings.groups_per_step,
        on_rollout=metrics.record_rollout, on_lost_group=metrics.record_group,
    )  # fmt: skip
    run_logger = build_run_logger(config, folder, metrics)
    store = CheckpointStore(folder.checkpoints, config.checkpoints.keep)
    learner = LearnerThread(
        config, profile, placement, health=health, count=metrics.thread_failures.labels(owner=LEARNER).inc
    )
    writer = CheckpointWriter(store, learner, background=config.checkpoints.background)
    schedule = build_schedule(
        config, services, profile, held_out, engine, breaker, metrics, health, store, writer, run_logger
    )
    parts = RunParts(
        learner=learner, engine=engine, orchestrator=orchestrator, rewards=rewards, finished=finished,
        validation=schedule, store=store, writer=writer, run_logger=run_logger,
        identity=describe_identity(config, source),
        pin_services=lambda: pin_run_services(config, services, profile, questions, held_out),
    )  # fmt: skip
    state = RunState(config.name, config.steps)
    metrics.watch(
        config.steps,
        is_paused=lambda: state.paused,
        groups_in_flight=lambda: orchestrator.in_flight,
        groups_waiting=lambda: orchestrator.ready,
        is_circuit_open=lambda: breaker.is_open,
    )
    return TrainingService(TrainingLoop(config, parts, state), state, run_logger)


def build_schedule(
    config: RunConfig,
    services: Services,
    profile: SearcherProfile,
    questions: Sequence[Question],
    engine: RolloutEngine,
    breaker: CircuitBreaker,
    metrics: TrainerMetrics,
    health: Health | None,
    store: CheckpointStore,
    writer: CheckpointWriter,
    run_logger: RunLogger,
) -> ValidationSchedule:
    """Build the validations: a worker that samples greedily, with a reward function of its own.

    Raises:
        ConfigurationError: the baselines lack a question.
    """
    if not questions:
        return ValidationSchedule(config.validation, None, store, writer, run_logger, metrics)
    folder, settings = RunFolder(config.output).validation, config.rollouts
    rewards = build_rewards(config, config.validation_reward, services, questions, breaker, metrics, profile.limits)
    finished = FinishedRollouts(
        folder / "unscored",
        lockstep=False,  # each is used on its own: a validation needs no bits beyond its tokens
        health=health,
        count=metrics.thread_failures.labels(owner=FINISHED_ROLLOUTS).inc,
    )
    worker = RolloutWorker(
        engine, services.searcher, ModelTokenizer.of_searcher(config.model), replace(profile, temperature=0.0),
        rewards, settings, config.seed,
        finished=finished,
        name=validation_name,
        on_failure=lambda error: metrics.record_failed_call("rollout", error),
    )  # fmt: skip
    validator = Validator(
        questions, worker, rewards, engine, finished, breaker, settings,
        config.validation.in_flight or settings.groups_per_step * settings.group_size,
        folder,
        baselines=config.validation_reward.baselines,
        needs_correct=config.validation.metric == "success",
        on_rollout=metrics.record_validation_rollout,
        on_pending=metrics.validation_pending.set,
    )  # fmt: skip
    return ValidationSchedule(config.validation, validator, store, writer, run_logger, metrics)


async def pin_run_services(
    config: RunConfig,
    services: Services,
    profile: SearcherProfile,
    questions: Sequence[Question],
    validation_questions: Sequence[Question],
) -> dict[str, str]:
    """Ask each service once, and compare the baselines of training and validation with the answers.

    Raises:
        searchrl.errors.ServiceError, ConfigurationError: as ``pin_services``.
    """
    top_k = naive_top_k(config, profile)
    pins = await pin_services(config, services, questions, top_k)
    if validation_questions:
        validated = config.model_copy(update={"reward": config.validation_reward})
        check_baseline(validated, validation_questions, pins, top_k)
    return pins


def build_run_logger(config: RunConfig, folder: RunFolder, metrics: TrainerMetrics) -> RunLogger:
    """Build what records each step.

    Raises:
        ConfigurationError: a tracker lacks its library, its key or its address.
    """
    return RunLogger(
        folder,
        metrics,
        trajectories_every=config.logging.trajectories_every,
        trackers=build_run_trackers(config, lambda name: metrics.tracker_lost_steps.labels(name).inc()),
        samples=config.logging.samples,
        config_text=dump_config(config),
        tokenizer=tokenizer_hash(config.model),
        total_steps=config.steps,
    )


def build_run_trackers(
    config: RunConfig, count_lost: Callable[[str], object] = lambda _name: None
) -> list[TrackerThread]:
    """Build what shows the steps elsewhere; ``count_lost`` is called with a tracker's name for each step it loses.

    Raises:
        ConfigurationError: a tracker lacks its library, its key or its address.
    """
    context = TrackerContext(config.name, config.output, config.model_dump(mode="json"))
    return build_trackers(config.logging, context, count_lost)


def build_engine(
    config: RunConfig,
    profile: SearcherProfile,
    folder: RunFolder,
    placement: RunPlacement,
    metrics: TrainerMetrics,
    health: Health | None,
) -> RolloutEngine:
    """Build the engine that samples the rollouts."""
    build, _ = ENGINES[config.engine.kind]
    context = EngineContext(
        config.model,
        folder.engine,
        profile.limits.max_context_tokens,
        adapter_rank=config.learner.adapter.rank if isinstance(config.learner.adapter, LoraSettings) else 0,
        placement=placement,
        lockstep=config.rollouts.max_staleness == 0,
        health=health,
        on_push=metrics.record_push,
        on_failed_push=metrics.push_failures.inc,
        on_failover=metrics.failovers.inc,
    )
    return build(config.engine, context)


def build_rewards(
    config: RunConfig,
    reward: RewardSettings,
    services: Services,
    questions: Sequence[Question],
    breaker: CircuitBreaker,
    metrics: TrainerMetrics,
    limits: Limits,
) -> RewardScorer:
    """Build the scorer of trajectories, which waits while dispatch is paused.

    Raises:
        ConfigurationError: the reward lacks a service, its files cannot be used for these questions, or its penalty on
            long rollouts cannot be met by this searcher's limits.
    """
    reward_class, _ = REWARDS[reward.kind]
    function = reward_class.build(reward, services.generator, questions)

    # A rollout whose reward fails does not end, so it would never be counted as failed: the attempt is counted instead.
    async def wait_out(error: ServiceError) -> None:
        breaker.record(True, f"a reward failed: {error}")
        await breaker.wait_until_closed()

    return RewardScorer(
        function,
        search_gain=config.reward.search_gain,
        without_turns="" if config.algorithm.credits_turns else config.algorithm.kind,
        overlong=config.reward.overlong.build(config.overlong_penalty, limits.max_sampled_tokens),
        max_in_flight=config.reward.max_in_flight,
        pause_seconds=config.rollouts.retry_pause_seconds,
        on_failure=lambda error: metrics.record_failed_call("generator", error),
        on_outage=wait_out,
    )


def build_probe(services: Services, question: Question) -> Callable[[], Awaitable[None]]:
    """Return a call that uses every service that rollouts need, including the frozen LLM and the judge."""

    # One question is enough, also one that is refused: to the circuit breaker a refusal means that the services work.
    async def probe() -> None:
        if services.generator is not None:
            await ask_generator(services.searcher, services.generator, question)
        else:
            await services.searcher.search([question.retrieval_query], 1, question.filters)

    return probe


def naive_top_k(config: RunConfig, profile: SearcherProfile) -> int:
    """Return the number of passages that naive RAG must have read in the baselines of this run."""
    return config.reward.naive_top_k or profile.first_top_k


def dump_config(config: RunConfig) -> str:
    """Return the run's configuration as YAML that ``--config`` accepts."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def service_spec(service: TrainingService, keys: KeyRing, health: Health, metrics: TrainerMetrics) -> ServiceSpec:
    """Describe the trainer to the servers."""
    servicer = TrainerServicer(service)
    return ServiceSpec(
        name="trainer",
        full_name=pb.DESCRIPTOR.services_by_name["Trainer"].full_name,
        register=partial(add_TrainerServicer_to_server, servicer),
        routers=[rest_router(servicer)],
        registry=metrics.registry,
        keys=keys,
        health=health,
        admin_methods=ADMIN_METHODS,
        stop=service.ended,
    )
