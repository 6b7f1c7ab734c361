"""Rejection sampling of a run's trajectories into rows for supervised training."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet

from searchrl.domain.question import Question
from searchrl.domain.trajectory import InfraFailure, Outcome, PolicyFailure, Reward, TokenKind, TokenRecord, Trajectory
from searchrl.small_world.files import WARM_START_FOLDER
from searchrl.tokenization.model_files import tokenizer_hash
from searchrl.tokenization.model_tokenizer import ModelTokenizer
from services.trainer.algorithms.sft import SftRun, SftSettings
from services.trainer.learner.device import LearnerSettings
from services.trainer.learner.learner import Learner
from services.trainer.rollouts.group import Group, Rollout
from services.trainer.rollouts.task_source import PromptGroup
from services.trainer.runs.run_folder import RunFolder
from services.trainer.runs.trajectory_files import write_trajectories
from services.trainer.sft.export_trajectories import Candidate, main, select, to_messages
from services.trainer.sft.token_rows import read_token_rows
from tests.fakes.small_run import SmallRun

TOKENIZER = ModelTokenizer.from_folder(WARM_START_FOLDER)
(END,) = TOKENIZER.eos_ids
Step = Mapping[str, Sequence[tuple[str, Outcome]]]


def trajectory(question: str, query: str) -> Trajectory:
    """One search and the end, in the tokens of the small world."""
    tokens = TokenRecord()
    tokens.append_given(TOKENIZER.render_prompt(f"Find documents: {question}"), TokenKind.PROMPT)
    for text, end in ((f"<query> {query} </query>", []), ("<search_complete> True", [END])):
        written = [*TOKENIZER.encode(text), *end]
        tokens.append_sampled(written, [-0.5] * len(written), [3] * len(written), [TokenKind.ACTION] * len(written))
        if not end:
            tokens.append_given(TOKENIZER.encode("<information> found </information>"), TokenKind.OBSERVATION)
    return Trajectory(question, tokens)


def write_run(folder: Path, steps: Sequence[Step], tokenizer: str = "") -> Path:
    """Write the trajectories of a run: for each step and question, the queries of the rollouts and their outcomes."""
    run = RunFolder(folder)
    run.trajectories.mkdir(parents=True)
    run.config.write_text(f"model: {WARM_START_FOLDER}\n")
    for step, questions in enumerate(steps, start=1):
        groups = [
            Group(
                PromptGroup(number, 0, Question(name, name, ("a",))),
                [Rollout(index, trajectory(name, query), made) for index, (query, made) in enumerate(rollouts)],
            )
            for number, (name, rollouts) in enumerate(questions.items())
        ]
        write_trajectories(run.trajectory_file(step), step, groups, tokenizer or tokenizer_hash(WARM_START_FOLDER))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    lost: Outcome = InfraFailure("the retriever")
    first = {
        "q1": [("bank", Reward(1.0)), ("mill", Reward(0.2)), ("hall", PolicyFailure(1.0, "malformed")), ("a", lost)],
        "q2": [("mill", Reward(0.0)), ("bank", Reward(0.1))],
    }
    second = {"q1": [("hall", Reward(1.0)), ("bank", Reward(1.0)), ("mill", Reward(0.9))], "q3": [("a", Reward(0.8))]}
    return write_run(tmp_path / "run", [first, second])


def export(run: Path, output: Path, *flags: str) -> int:
    return main(["--run", str(run), "--output", str(output), *flags])


def kept(output: Path) -> list[tuple[str, int, float, int]]:
    rows = parquet.read_table(output).to_pylist()
    return [(row["question_id"], row["step"], row["reward"], row["rollout_index"]) for row in rows]


def test_the_best_of_each_question_are_kept_and_the_others_counted(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(run, tmp_path / "best.parquet", "--min-reward", "0.5", "--best", "2") == 0
    # q1: the query "bank" of both steps is one trajectory, of which the later is kept; 0.9 is the third best
    assert kept(tmp_path / "best.parquet") == [("q1", 2, 1.0, 0), ("q1", 2, 1.0, 1), ("q3", 2, 0.8, 0)]
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    shown = {text: count for count, text in lines}
    assert shown == {
        "trajectories": "10",
        "left out: failed, so they were not scored": "2",
        "left out: a reward below 0.5": "3",
        "left out: equal to another one of its question": "1",
        "left out: their question has 2 better ones": "1",
        "questions with a kept trajectory": "2",
        f"trajectories in {tmp_path / 'best.parquet'}": "3",
    }


def test_without_a_number_all_good_ones_are_kept_as_they_were_sampled(run: Path, tmp_path: Path) -> None:
    assert export(run, tmp_path / "all.parquet", "--min-reward", "0") == 0
    # of the equal trajectories of q1, "bank" and "mill", those with the higher reward or of the later step
    assert kept(tmp_path / "all.parquet")[2:] == [
        ("q1", 2, 1.0, 0),
        ("q1", 2, 1.0, 1),
        ("q1", 2, 0.9, 2),
        ("q3", 2, 0.8, 0),
    ]
    rows = read_token_rows([tmp_path / "all.parquet"], WARM_START_FOLDER, None).rows
    tokens = trajectory("q2", "mill").tokens
    assert np.asarray(rows[0].token_ids).tolist() == tokens.ids
    assert np.asarray(rows[0].action_mask).tolist() == tokens.mask


def test_the_files_of_a_run_can_be_trained_on_but_not_failed_rollouts(tmp_path: Path) -> None:
    good = write_run(tmp_path / "good", [{"q1": [("bank", Reward(1.0))]}])
    assert len(read_token_rows([RunFolder(good).trajectory_file(1)], WARM_START_FOLDER, None).rows) == 1
    bad = write_run(tmp_path / "bad", [{"q1": [("bank", Reward(1.0)), ("hall", InfraFailure("lost"))]}])
    with pytest.raises(Exception, match=r"row 2: the rollout was not scored, its outcome is 'InfraFailure'"):
        read_token_rows([RunFolder(bad).trajectory_file(1)], WARM_START_FOLDER, None)


def test_tokens_of_another_tokenizer_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = write_run(tmp_path / "own", [{"q1": [("bank", Reward(1.0))]}])
    other = write_run(tmp_path / "other", [{"q1": [("bank", Reward(1.0))]}], tokenizer="another")
    with pytest.raises(Exception, match="holds tokens of another tokenizer than the model's"):
        read_token_rows([RunFolder(other).trajectory_file(1)], WARM_START_FOLDER, None)
    output = tmp_path / "out"
    assert export(own, output, "--run", str(other), "--min-reward", "1") == 2
    assert "have different tokenizers" in capsys.readouterr().err
    assert export(other, output, "--min-reward", "1", "--form", "messages") == 2
    assert "has the tokenizer that" in capsys.readouterr().err
    assert not output.exists()


def test_messages_hold_prompt_turns_and_observations_in_text(run: Path, tmp_path: Path) -> None:
    assert export(run, tmp_path / "chats.jsonl", "--min-reward", "0.8", "--best", "1", "--form", "messages") == 0
    rows = [json.loads(line) for line in (tmp_path / "chats.jsonl").read_text().splitlines()]
    assert [(row["question_id"], row["step"], row["reward"]) for row in rows] == [("q1", 2, 1.0), ("q3", 2, 0.8)]
    roles = [message["role"] for message in rows[0]["messages"]]
    assert roles == ["user", "assistant", "user", "assistant"]
    assert TOKENIZER.encode(rows[0]["messages"][1]["content"]) == TOKENIZER.encode("<query> hall </query>")
    assert TOKENIZER.render_prompt(rows[0]["messages"][0]["content"]) == TOKENIZER.render_prompt("Find documents: q1")
    assert len(read_token_rows([tmp_path / "chats.jsonl"], WARM_START_FOLDER, None).rows) == 2


def test_a_prompt_that_is_not_what_the_template_makes_of_its_text_is_no_message() -> None:
    """Decoding leaves out the end token that a guarded document could not have written."""
    made = trajectory("q1", "bank")
    made.tokens.ids[2] = END
    prompt = TOKENIZER.render_prompt("Find documents: q1")
    assert to_messages(made.tokens.ids, made.tokens.mask, TOKENIZER) is None
    assert to_messages([*prompt, 5], [False] * len(prompt) + [True], TOKENIZER) is not None
    assert to_messages(prompt, [True] * len(prompt), TOKENIZER) is None


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--min-reward", "2"], "no trajectory would be left, so nothing was written: 10 trajectories; 8 left out"),
        (["--min-reward", "0", "--best", "0"], "--best must be at least 1"),
        (["--min-reward", "0", "--bests", "1"], "did you mean '--best'"),
    ],
)
def test_what_cannot_be_exported_is_refused_with_a_sentence(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], reason: str
) -> None:
    assert export(run, tmp_path / "out", *flags) == 2
    assert reason in capsys.readouterr().err
    assert export(tmp_path, tmp_path / "out", "--min-reward", "0") == 2
    assert "holds no trajectories" in capsys.readouterr().err


async def test_rollouts_of_a_real_run_are_exported_and_trained_on(tmp_path: Path) -> None:
    logging = {"trackers": [], "trajectories_every": 1}
    run = await SmallRun(
        tmp_path, steps=1, rollouts__groups_per_step=1, rollouts__group_size=2, logging=logging
    ).train()
    assert export(run.folder, tmp_path / "rows.parquet", "--min-reward", "0") == 0
    data = read_token_rows([tmp_path / "rows.parquet"], WARM_START_FOLDER, None)
    learner = Learner.from_folder(WARM_START_FOLDER, LearnerSettings(), 0)
    report = SftRun(learner, data.rows, SftSettings()).run(1)
    recorded: list[float] = []
    for row in parquet.read_table(tmp_path / "rows.parquet").to_pylist():
        recorded += [value for value, is_sampled in zip(row["logprobs"], row["mask"], strict=True) if is_sampled]
    # the policy that sampled these tokens predicts them as its engine recorded
    assert report is not None and report.action_nll == pytest.approx(-np.mean(recorded), abs=1e-4)
    assert report.loss.sums["action_tokens"] == len(recorded)


def test_of_equal_rewards_the_latest_step_wins() -> None:
    def candidate(step: int, reward: float) -> Candidate:
        return Candidate(Path(), Path(f"{step}"), 0, ("q", "?"), reward, step, bytes([step]))

    given = [candidate(1, 1.0), candidate(3, 1.0), candidate(2, 1.0), candidate(4, 0.5)]
    counts: Counter[Any] = Counter()
    assert [chosen.step for chosen in select(given, 2, counts)] == [2, 3]
