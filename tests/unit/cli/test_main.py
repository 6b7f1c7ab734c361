"""The command line answers fast, imports late, and reports what is wrong in one clear sentence."""

import importlib
import subprocess
import sys
import time
from pathlib import Path

import pytest

import searchrl
from searchrl.cli import main
from searchrl.cli.command_parser import CommandParser
from searchrl.errors import ConfigurationError, Conflict, InvalidRequest, ServiceError, Unauthenticated, Unavailable

HEAVY = ("grpc", "httpx", "pydantic", "rich", "numpy", "torch", "google.protobuf", "yaml")


def test_the_overview_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown and command.summary in shown for name, command in main.COMMANDS.items())


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["--version"]) == 0
    assert capsys.readouterr().out == f"searchrl {searchrl.__version__}\n"


@pytest.mark.parametrize("name", main.COMMANDS)
def test_every_command_of_the_table_exists_and_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(main.COMMANDS[name].module)
    assert callable(module.run)
    with pytest.raises(SystemExit) as ended:
        main.run([name, "--help"])
    assert ended.value.code == 0
    assert f"usage: searchrl {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["upp"], "unknown command 'upp': did you mean 'up'?"),
        (["ask", "q", "--methd", "rag"], "unknown flag '--methd': did you mean '--method'?"),
        (["ask", "q", "--methd=rag"], "unknown flag '--methd': did you mean '--method'?"),
        (["ask"], "the following arguments are required: question; see searchrl ask --help"),
        (["ask", "q", "r"], "unexpected argument 'r'; see searchrl ask --help"),
        (["up", "--engine", "vlm"], "invalid choice: 'vlm'"),
        (["up", "--corpus", "/no/such/corpus"], "--corpus: there is no file /no/such/corpus"),
        (["up", "--index", "/no/such/index"], "/no/such/index holds no index"),
        (["up", "--searcher", "/no/such/model"], "/no/such/model is no searcher's model folder"),
        (["up", "--engine", "url"], "--engine url needs --engine-url and --engine-model"),
        (
            ["up", "--set", "retreiver.x=1"],  # codespell:ignore
            "unknown service 'retreiver': did you mean 'retriever'?",
        ),
        (["up", "--set", "nonsense"], "--set takes name=value, got 'nonsense'"),
        (["up", "--config", "/no/such/file"], "cannot read the settings file /no/such/file"),
        (["index", "--corpus", "/no/such/corpus", "--output", "o"], "--corpus: there is no file /no/such/corpus"),
        (["train"], "say what to train: --config FILE, --preset NAME or --resume DIR"),
        (["train", "--config", "/no/such/run"], "--config: there is no file /no/such/run"),
        (["small-world", "w", "--test-worlds", "0"], "--test-worlds must be at least 1, got 0"),
        (["ask", "q", "--generator", "h:1", "--filter", "world"], "--filter takes NAME=VALUE, got 'world'"),
    ],
)
def test_wrong_use_is_one_sentence_and_exit_code_2(
    argv: list[str], sentence: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main.run(argv) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert captured.err.startswith("searchrl: ") and captured.err.count("\n") == 1
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []  # no half-written file


@pytest.mark.parametrize("command", ["status", "ask", "evaluate"])
def test_a_command_without_running_services_says_how_to_start_them(
    command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["q"] if command == "ask" else []
    assert main.run([command, *words, "--folder", str(tmp_path)]) == 2
    assert "searchrl up" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Unavailable("no answer"), 1),
        (Unauthenticated("no key"), 2),
        (InvalidRequest("bad"), 2),
        (Conflict("there is a run of that id"), 2),
    ],
)
def test_a_failed_call_is_exit_code_1_unless_the_call_itself_is_wrong(
    error: ServiceError, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def dispatch(argv: object) -> int:
        raise error

    monkeypatch.setattr(main, "_dispatch", dispatch)
    assert main.run(["ask", "q"]) == code
    assert capsys.readouterr().err == f"searchrl: {error}\n"


def test_an_interrupt_is_exit_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def dispatch(argv: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "_dispatch", dispatch)
    assert main.run(["up"]) == 130


def test_the_overview_loads_no_heavy_package() -> None:
    script = f"import sys, searchrl.cli.main as m; m.run([]); print([n for n in {HEAVY!r} if n in sys.modules])"
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert finished.stdout.splitlines()[-1] == "[]"


def test_the_overview_comes_much_faster_than_a_service_client_loads() -> None:
    def seconds(script: str) -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
        return time.perf_counter() - started

    overview = min(seconds("import searchrl.cli.main as m; m.run([])") for _ in range(3))
    client = min(seconds("import searchrl.clients.generator_client, rich.live") for _ in range(3))
    assert overview < client


def test_a_double_dash_ends_the_flags() -> None:
    parser = CommandParser("p", "d")
    parser.add_argument("words", nargs="*")
    assert parser.parse(["--", "--not-a-flag"]).words == ["--not-a-flag"]
    with pytest.raises(ConfigurationError, match="--not-a-flag"):
        parser.parse(["--not-a-flag"])
