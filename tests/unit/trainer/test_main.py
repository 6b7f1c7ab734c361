"""The trainer's program refuses arguments and inputs that it cannot use with one sentence and exit code 2."""

import asyncio
import json
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from searchrl.errors import ConfigurationError
from searchrl.platform.server import serve
from searchrl.platform.server.serve import ServiceSpec
from searchrl.small_world.files import WARM_START_FOLDER
from services.trainer import metrics
from services.trainer.command_line import TrainerSettings, main, parse_arguments, split_assignments, train
from services.trainer.metrics import TrainerMetrics
from services.trainer.settings import load_run_config
from services.trainer.training_service import TrainingService
from tests.fakes.small_run import write_questions

Arguments = Callable[..., list[str]]


@pytest.fixture
def arguments(tmp_path: Path) -> Arguments:
    """The arguments of a run that can start, with changes."""
    questions = write_questions(tmp_path / "questions.jsonl")

    def build(**changes: object) -> list[str]:
        values = {
            "preset": "small_world",
            "model": WARM_START_FOLDER,
            "questions": questions,
            "output": tmp_path / "run",
            "services.generator": "127.0.0.1:1",
            "listen.http_port": 0,
            "listen.grpc_port": 0,
            "log_format": "text",
            **{name.replace("__", "."): value for name, value in changes.items()},
        }
        return [part for name, value in values.items() for part in ("--set", f"{name}={value}")]

    return build


@pytest.fixture(autouse=True)
def metrics_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each program its own registry: metrics are registered per process, and here one process runs many."""
    monkeypatch.setattr(metrics, "TrainerMetrics", lambda: TrainerMetrics(CollectorRegistry()))


@pytest.fixture(autouse=True)
def sigterm_as_before() -> Iterator[None]:
    """Restore the handler that the program leaves as its process ends."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def refusal(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    """Run the program, check that it ends with one sentence and exit code 2, and return the sentence."""
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("trainer: ")]
    assert len(lines) == 1
    return lines[0].removeprefix("trainer: ")


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("--confg", "unknown flag '--confg': did you mean '--config'?"),
        ("--resum", "unknown flag '--resum': did you mean '--resume'?"),
        (
            "extra",
            "unknown flag 'extra'; known: --config, --dry-run, --help, --json, --new, --resume, --set, "
            "--unfinished-exit-code",
        ),
    ],
)
def test_an_unknown_flag_is_named_with_the_nearest(
    capsys: pytest.CaptureFixture[str], flag: str, sentence: str
) -> None:
    assert refusal(capsys, [flag]) == sentence


def test_an_unknown_setting_of_run_or_process_is_named_with_the_nearest(capsys, arguments: Arguments) -> None:
    assert "did you mean 'group_size'?" in refusal(capsys, arguments(rollouts__group_sice=3))
    assert "did you mean 'grpc_port'?" in refusal(capsys, arguments(listen__grcp_port=3))


def test_an_unknown_variable_is_named_with_the_nearest(capsys, arguments: Arguments, monkeypatch) -> None:
    monkeypatch.setenv("TRAINER_LOG_FORMT", "text")
    assert "did you mean 'log_format'?" in refusal(capsys, arguments())


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["run", "dry run"])
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model": "nowhere"}, "there is no model folder nowhere"),
        ({"questions": "nowhere.jsonl"}, "there is no question file nowhere.jsonl"),
        (
            {"services__key_file": "nowhere.key"},
            "cannot read the key file nowhere.key: No such file or directory",
        ),
        ({"temperature": 0}, "setting 'temperature': Input should be greater than 0"),
    ],
)
def test_what_is_missing_is_named_and_nothing_is_written(
    capsys, arguments: Arguments, tmp_path: Path, change: dict[str, object], sentence: str, dry: list[str]
) -> None:
    assert sentence in refusal(capsys, arguments(**change) + dry)
    assert not (tmp_path / "run").exists()


def test_a_key_file_that_is_no_text_is_named(capsys, arguments: Arguments, tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    key_file.write_bytes(b"\xff\xfe")
    assert f"the key file {key_file} is not UTF-8 text" in refusal(capsys, arguments(services__key_file=key_file))


def test_questions_without_golden_answers_are_named_by_line(capsys, arguments: Arguments, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps({"id": "a", "question": "Who?"}) + "\n")
    assert "bad.jsonl, line 1: question 'a' has no golden answers" in refusal(capsys, arguments(questions=path))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("searcher.json", "has no searcher.json, which defines how the searcher is prompted and sampled"),
        ("tokenizer.json", "has no tokenizer.json; a model folder must hold one"),
        ("config.json", "is not a model folder: it has no config.json"),
        ("model.safetensors", "cannot load the model in"),
    ],
)
def test_a_model_folder_that_lacks_a_file_is_refused(
    capsys, arguments: Arguments, tmp_path: Path, name: str, sentence: str
) -> None:
    model = tmp_path / "model"
    shutil.copytree(WARM_START_FOLDER, model)
    (model / name).unlink()
    assert sentence in refusal(capsys, arguments(model=model))
    assert not (tmp_path / "run").exists()


def test_damaged_weights_are_refused(capsys, arguments: Arguments, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(WARM_START_FOLDER, model)
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert "cannot load the model in" in refusal(capsys, arguments(model=model))


def test_a_searcher_that_samples_from_a_part_of_the_tokens_cannot_be_trained(
    capsys, arguments: Arguments, tmp_path: Path
) -> None:
    """With top-p or top-k, tokens outside the kept set have no log-probability to train on."""
    model = tmp_path / "model"
    shutil.copytree(WARM_START_FOLDER, model)
    profile = json.loads((model / "searcher.json").read_text())
    (model / "searcher.json").write_text(json.dumps(profile | {"top_p": 0.95}))
    assert "training needs top_p 1" in refusal(capsys, arguments(model=model, temperature=0.6))


@pytest.mark.parametrize("create", [True, False])
def test_a_folder_without_a_run_cannot_be_resumed(capsys, tmp_path: Path, create: bool) -> None:
    folder = tmp_path / "empty"
    if create:
        folder.mkdir()
    assert refusal(capsys, ["--resume", str(folder)]) == f"--resume: {folder} holds no run: it has no run.yaml"


async def test_a_run_is_interrupted_in_its_event_loop_whichever_thread_changes_health(
    arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The learner's thread changes health, too, and may do so while the process drains."""
    callers: list[threading.Thread] = []

    async def drain_in_a_thread(spec: ServiceSpec, _settings: TrainerSettings) -> None:
        await asyncio.to_thread(spec.health.start_draining)
        await asyncio.sleep(0)

    monkeypatch.setattr(serve, "serve", drain_in_a_thread)
    monkeypatch.setattr(
        TrainingService, "stop_if", lambda _service, draining: callers.append(threading.current_thread())
    )
    await train_with(arguments())
    assert len(callers) >= 2 and set(callers) == {threading.current_thread()}


@pytest.mark.parametrize("error", [None, ConfigurationError("a port is taken")])
async def test_a_further_sigterm_does_not_replace_the_exit_code(
    arguments: Arguments, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    """``stop_run`` repeats the signal until the process has exited, also when the servers no longer handle it."""

    async def end(_spec: ServiceSpec, _settings: TrainerSettings) -> None:
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN
        if error is not None:
            raise error

    monkeypatch.setattr(serve, "serve", end)
    with nullcontext() if error is None else pytest.raises(ConfigurationError):
        await train_with(arguments())
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


async def train_with(argv: list[str]) -> None:
    parsed = parse_arguments(argv)
    run_assignments, process_assignments = split_assignments(parsed.set)
    settings = TrainerSettings.from_environment([f"--set={text}" for text in process_assignments])
    await train(load_run_config(None, run_assignments), parsed, settings)
