"""Defines the steps from a corpus to a served searcher: the command of each, and the registry ``STEPS``.

Each step reads what earlier steps wrote to the shared storage: corpora, questions, indexes, models, baselines, runs and
evaluations, each in its own folder with a manifest of checksums.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from searchrl.errors import ConfigurationError
from searchrl.jobs.engine_flags import ENGINE_FLAGS, check_assignments, engine_settings, read_engines
from searchrl.jobs.job_settings import CLIENT_KEY_FILE, DATA, KEYS_FILE, JobSettings, check_run_id, data_path
from searchrl.jobs.rollout_engines import engine_name
from searchrl.jobs.step import Engines, Program, Size, Step

WORLD = "small-world"
TRAIN_QUESTIONS, TEST_QUESTIONS = f"{WORLD}/train.jsonl", f"{WORLD}/test.jsonl"
SEARCHER = f"{WORLD}-searcher"
NEEDS_BASELINE = frozenset({"s3"})
PYTHON = ("python", "-m")
TRAINER_PORTS = {"http": 8080, "grpc": 9090}


def small_world_step(name: str = WORLD, extra: Sequence[str] = ()) -> Step:
    """Write the small world's corpus, questions and searcher."""
    command = (*PYTHON, "searchrl.jobs.small_world_data", "--data", DATA, "--name", check_run_id(name))
    return Step("small-world", name, "job-small-world", Program("small-world", "retriever", (*command, *flags(extra))))


def index_step(
    settings: JobSettings,
    name: str = WORLD,
    corpus: Sequence[str] = (f"{WORLD}/corpus.jsonl",),
    extra: Sequence[str] = (),
) -> Step:
    """Build an index for the retriever, unless one of the same corpus and settings exists."""
    files = tuple(data_path("corpora", path) for path in corpus)
    output = f"{DATA}/indexes/{check_run_id(name)}"
    command = (*PYTHON, "services.retriever.build_index", "--corpus", *files, "--output", output)
    command += ("--if-missing", "--progress", "json", *flags(extra))
    given = {name: value for name, _, value in (assignment.partition("=") for assignment in extra)}
    if settings.gpus and given.get("kind", "bm25") == "bm25":
        raise ConfigurationError("--gpus: a bm25 index is built without one; encoders use them, with --set kind=dense")
    # Encoders run on the CPU unless told otherwise, and a reserved GPU would be idle.
    if settings.gpus and "device" not in given:
        command += ("--device", "cuda")
    program = Program("index", "retriever", command, on_gpu=settings.gpus > 0)
    return Step("index", name, "job-index", program)


def baseline_step(
    settings: JobSettings,
    key: str = WORLD,
    questions: str = TRAIN_QUESTIONS,
    top_k: int = 3,
    extra: Sequence[str] = (),
) -> Step:
    """Answer the training questions with naive RAG and judge the answers, for Gain Beyond RAG."""
    output = f"{DATA}/baselines/{check_run_id(key)}/baseline.json"
    command = (*PYTHON, "services.evaluator.commands.build_baseline", "--questions", data_path("questions", questions))
    command += ("--output", output, "--top-k", str(top_k), "--if-missing", "--manifest")
    command += _evaluator_targets(settings)
    program = Program("baseline", "evaluator", (*command, *flags(extra)), Size("250m", "1Gi"))
    return Step("baseline", key, "job-baseline", program, calls_services=True)


def sft_step(
    settings: JobSettings,
    run_id: str = f"{WORLD}-sft",
    questions: str = TRAIN_QUESTIONS,
    extra: Sequence[str] = (),
) -> Step:
    """Train a new small model by supervised fine-tuning on scripted demonstrations; the result is a model folder."""
    _check_cpu_only("sft", settings)
    command = (*PYTHON, "services.trainer.small_world.warm_start", "--output", f"{DATA}/models/{check_run_id(run_id)}")
    command += ("--questions", data_path("questions", questions), "--retriever", settings.target("retriever"))
    command += ("--checkpoints", f"{DATA}/runs/{run_id}/checkpoints", *_key_file(settings), *flags(extra))
    program = Program("sft", "trainer", command, Size("1", "3Gi"))
    return Step("sft", run_id, "job-sft", program, grace_seconds=60, calls_services=True)


def sft_rows_step(
    settings: JobSettings, run_id: str, data: Sequence[str], model: str = SEARCHER, assignments: Sequence[str] = ()
) -> Step:
    """Train a model on rows of the user's own, continuing the run if its folder exists; see ``train_step``."""
    if settings.gpus > 1:
        raise ConfigurationError(f"--gpus {settings.gpus}: supervised training in a job uses one GPU")
    files = json.dumps([data_path("questions", file) for file in data])
    known = {"run_id": run_id, "model": data_path("models", model), "data": files}
    known["output"] = f"{DATA}/runs/{check_run_id(run_id)}"
    if settings.gpus:
        known["learner.device"] = "cuda"
    fixed = {"run_id": "--run-id", "output": "--run-id", "data": "--data"}
    command = (*PYTHON, "services.trainer.sft", "--unfinished-exit-code", "143")
    command += _set_flags(known, assignments, fixed)
    program = Program("sft", "trainer", command, Size("1", "3Gi"), on_gpu=settings.gpus > 0)
    return Step("sft", run_id, "job-sft", program, grace_seconds=120)


def train_step(
    settings: JobSettings,
    run_id: str = WORLD,
    preset: str = "small_world",
    model: str = SEARCHER,
    questions: str = TRAIN_QUESTIONS,
    validation: str = "",
    baseline: str = "",
    ranks: int = 0,
    engines: Engines | None = None,
    assignments: Sequence[str] = (),
) -> Step:
    """Train a searcher by reinforcement learning, continuing the run if its folder exists.

    The trainer exits with 143 if it stops before the run is finished: the Job ignores that code, so an interruption
    does not count as a failure and the next pod continues.
    """
    if settings.gpus > 1:
        raise ConfigurationError(
            f"--gpus {settings.gpus}: a learner process uses one GPU; several learn together with "
            f"--ranks {settings.gpus} --gpus 1"
        )
    known = {
        "preset": preset,
        "run_id": run_id,
        "model": data_path("models", model),
        **({"questions": data_path("questions", questions)} if questions else {}),
        "output": f"{DATA}/runs/{check_run_id(run_id)}",
        "services.retriever": settings.target("retriever"),
        "services.generator": settings.target("generator"),
        "listen.host": "0.0.0.0",
    }
    _check_baseline(preset, baseline)
    if validation:
        known["validation.questions"] = data_path("questions", validation)
    if baseline:
        known["reward.baseline_file"] = f"{DATA}/baselines/{check_run_id(baseline)}/baseline.json"
    if settings.auth_secret:
        known |= {"services.key_file": CLIENT_KEY_FILE, "auth_keys_file": KEYS_FILE}
    if settings.gpus:
        known["learner.device"] = "cuda"
    if ranks:
        known["learner.ranks"] = str(ranks)
    if engines is not None:
        check_assignments(sorted(map(_name_of, assignments)))
        known |= engine_settings(engines, engine_name(settings.release, run_id), run_id)
    fixed = {"run_id": "--run-id", "output": "--run-id", "preset": "--preset"}
    command = (*PYTHON, "services.trainer", "--unfinished-exit-code", "143")
    command += _set_flags(known, assignments, fixed)
    # For the small world's searcher: a training pod peaks at 0.8 GiB (docs/operations/sizing.md). With ranks the pod is
    # also Ray's head. A larger model needs --memory.
    size = Size("1", "4Gi") if ranks else Size("1", "3Gi")
    program = Program("trainer", "trainer", command, size, ports=TRAINER_PORTS, on_gpu=settings.gpus > 0)
    return Step(
        "train", run_id, "trainer", program, grace_seconds=120, calls_services=True, workers=ranks,
        worker_size=Size("1", "3Gi"), engines=engines,
    )  # fmt: skip


def _check_baseline(preset: str, baseline: str) -> None:
    """Raises:
    ConfigurationError: the preset's reward compares with a baseline, and none is named.
    """
    if not baseline and preset in NEEDS_BASELINE:
        raise ConfigurationError(
            f"--preset {preset} needs --baseline: the run id of `searchrl submit baseline` over the same questions"
        )


def publish_step(run_id: str = WORLD, extra: Sequence[str] = ()) -> Step:
    """Check a run's newest model and copy it to an immutable folder, from which the release serves it."""
    command = (*PYTHON, "services.trainer.publish_model", "--run", f"{DATA}/runs/{check_run_id(run_id)}")
    command += ("--models", f"{DATA}/models", *flags(extra))
    return Step("publish", run_id, "job-publish", Program("publish", "trainer", command))


def evaluate_step(
    settings: JobSettings,
    run_id: str = WORLD,
    questions: str = TEST_QUESTIONS,
    methods: str = "direct,rag,s3",
    model: str = f"{DATA}/runs/{WORLD}/final",
    engine: Sequence[str] = ("kind=reader",),
    extra: Sequence[str] = (),
) -> Step:
    """Compare answering methods.

    With a ``model`` the pod runs its own searcher and generator, so that a model is evaluated before it is served;
    ``engine`` configures that generator's frozen language model. Without one the release's generator is called.
    """
    _check_cpu_only("evaluate", settings)
    command = (*PYTHON, "services.evaluator.commands.evaluate", "--questions", data_path("questions", questions))
    command += ("--methods", methods, "--run-id", check_run_id(run_id), "--output", f"{DATA}/evaluations/{run_id}")
    # The pod's own generator has no certificate, and the connection does not leave the pod.
    neighbor = "plain://127.0.0.1:9091" if settings.tls_secret else "127.0.0.1:9091"
    command += _evaluator_targets(settings, neighbor if model else "")
    command += ("--of", data_path("models", model)) if model else ()
    program = Program("evaluate", "evaluator", (*command, *flags(extra)), Size("100m", "1Gi"))
    beside = _own_searcher(settings, data_path("models", model), engine) if model else ()
    return Step("evaluate", run_id, "job-evaluate", program, beside, calls_services=True)


def _own_searcher(settings: JobSettings, model: str, engine: Sequence[str]) -> tuple[Program, ...]:
    policy = (*PYTHON, "services.policy_server", "--model", model, "--port", "8000")
    policy += ("--set", "listen.host=0.0.0.0", "--set", "name=searcher")
    texts = [f"engine.{text}" for text in engine]
    texts += [f"searcher.model_dir={model}", "searcher.base_url=http://127.0.0.1:8000", "searcher.model=searcher"]
    texts += [f"retriever.target={settings.target('retriever')}", "listen.host=0.0.0.0"]
    texts += ["listen.http_port=8081", "listen.grpc_port=9091"]
    generator = (*PYTHON, "services.generator", *(part for text in texts for part in ("--set", text)))
    return (
        Program("searcher", "trainer", policy, Size("250m", "2Gi"), 8000),
        Program("generator", "generator", generator, Size("100m", "1Gi"), 8081, client_key="GENERATOR_RETRIEVER__KEY"),
    )


def _check_cpu_only(step: str, settings: JobSettings) -> None:
    """Refuse GPUs for a step that cannot use them: nobody else could use a reserved device.

    Raises:
        ConfigurationError: GPUs were requested.
    """
    if settings.gpus:
        raise ConfigurationError(f"--gpus: {step} computes on CPUs; index (encoders) and train use GPUs")


def flags(assignments: Sequence[str]) -> tuple[str, ...]:
    """Convert ``--set`` texts to flags: ``kind=dense`` to ``--kind dense``, ``controls=true`` to ``--controls``."""
    found: list[str] = []
    for assignment in assignments:
        name, value = _name_of(assignment), assignment.partition("=")[2]
        flag = f"--{name.replace('_', '-')}"
        found += [] if value == "false" else [flag] if value == "true" else [flag, value]
    return tuple(found)


def _set_flags(known: Mapping[str, str], assignments: Sequence[str], fixed: Mapping[str, str]) -> tuple[str, ...]:
    """Return ``--set`` for the settings that the job knows and for the user's assignments, which replace them.

    Args:
        fixed: what cannot be assigned, and the flag of the job from which it is taken.
    """
    given = {_name_of(assignment) for assignment in assignments}
    if refused := min(given & fixed.keys(), default=""):
        raise ConfigurationError(f"--set {refused}: jobs take it from {fixed[refused]}")
    texts = [f"{name}={value}" for name, value in known.items() if name not in given] + list(assignments)
    return tuple(part for text in texts for part in ("--set", text))


def _name_of(assignment: str) -> str:
    name, equals, _ = assignment.partition("=")
    if not equals or not name.strip():
        raise ConfigurationError(f"--set takes name=value, got '{assignment}'")
    return name.strip()


def _evaluator_targets(settings: JobSettings, generator: str = "") -> tuple[str, ...]:
    targets = ("--generator", generator or settings.target("generator"), "--retriever", settings.target("retriever"))
    return (*targets, *_key_file(settings))


def _key_file(settings: JobSettings) -> tuple[str, ...]:
    return ("--key-file", CLIENT_KEY_FILE) if settings.auth_secret else ()


class StepKind(NamedTuple):
    """How one step is described by flags, as ``searchrl submit`` takes them.

    Attributes:
        flags: flags that only some steps take; any other step refuses them.
        build: makes the step of the job's settings, the run id, the given flags and the texts of ``--set``.
        required: the flag that another run id than the default needs.
    """

    flags: tuple[str, ...]
    build: Callable[[JobSettings, str, Mapping[str, Any], Sequence[str]], Step]
    required: str = ""


def _sft(settings: JobSettings, run_id: str, given: Mapping[str, Any], extra: Sequence[str]) -> Step:
    """Rows of the user's own with ``--data``, else the demonstrations of the small world."""
    run_id = f"{WORLD}-sft" if run_id == WORLD else run_id
    if "data" in given:
        if "questions" in given:
            raise ConfigurationError("--questions makes demonstrations of the small world: leave one of the two out")
        return sft_rows_step(settings, run_id, assignments=extra, **given)
    if "model" in given:
        raise ConfigurationError("--model needs --data: without it a new model is made")
    return sft_step(settings, run_id, extra=extra, **given)


def _train(settings: JobSettings, run_id: str, given: Mapping[str, Any], extra: Sequence[str]) -> Step:
    if given.get("backend") == "rayjob" and not given.get("ranks"):
        raise ConfigurationError("--backend rayjob needs --ranks: the number of pods that hold the learner")
    if any(_name_of(text).startswith("mixture.") for text in extra):
        given = {"questions": "", **given}  # the sets replace the default; with --questions the trainer refuses both
    if given.get("preset", "small_world") != "small_world":
        missing = [name for name in ("model", "questions") if name not in given]
        if missing:
            raise ConfigurationError(
                f"--preset {given['preset']} needs {' and '.join(f'--{name}' for name in missing)}"
            )
    # The servers load the trainer's model; the last one that is named counts.
    named = [text.partition("=")[2] for text in extra if _name_of(text) == "model"]
    engines = read_engines(settings, given, [given.get("model", SEARCHER), *named][-1])
    # The backend decides how the step is rendered, not what it is.
    known = {name: value for name, value in given.items() if name not in ("backend", "engines", *ENGINE_FLAGS)}
    return train_step(settings, run_id, engines=engines, assignments=extra, **known)


def _evaluate(settings: JobSettings, run_id: str, given: Mapping[str, Any], extra: Sequence[str]) -> Step:
    served = given.get("served", False)
    if served and ("model" in given or "engine" in given):
        raise ConfigurationError("--served asks the release's generator: leave --model and --engine out")
    model = "" if served else given.get("model", f"{DATA}/runs/{run_id}/final")
    known = {name: value for name, value in given.items() if name not in ("served", "model")}
    return evaluate_step(settings, run_id, model=model, extra=extra, **known)


STEPS: dict[str, StepKind] = {
    "small-world": StepKind((), lambda settings, run_id, given, extra: small_world_step(run_id, extra)),
    "index": StepKind(
        ("corpus",),
        lambda settings, run_id, given, extra: index_step(settings, run_id, extra=extra, **given),
        required="corpus",
    ),
    "baseline": StepKind(
        ("questions", "top_k"),
        lambda settings, run_id, given, extra: baseline_step(settings, run_id, extra=extra, **given),
        required="questions",
    ),
    "sft": StepKind(("questions", "data", "model"), _sft),
    "train": StepKind(
        ("preset", "model", "questions", "validation", "baseline", "ranks", "backend", "engines", *ENGINE_FLAGS), _train
    ),
    "evaluate": StepKind(("questions", "methods", "model", "served", "engine"), _evaluate),
    "publish": StepKind((), lambda settings, run_id, given, extra: publish_step(run_id, extra)),
}
