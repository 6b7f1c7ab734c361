"""Rows that Search-R1, s3 and verl made for training: the question stands in the prompt, the answers in the reward."""

import json
from pathlib import Path

import pytest

from searchrl.errors import InvalidRequest
from tests.unit.datasets.written_questions import read, read_parquet

INSTRUCTION = "Answer the given question. For example, <answer> Beijing </answer>. Question: "


def searchr1_row(**changes: object) -> dict:
    return {
        "data_source": "nq",
        "prompt": [{"role": "user", "content": f"{INSTRUCTION}who wrote it?\n"}],
        "ability": "fact-reasoning",
        "reward_model": {"style": "rule", "ground_truth": {"target": ["Norr"]}},
        "extra_info": {"split": "train", "index": 3},
        **changes,
    }


CHAT = f"<|im_start|>user\n{INSTRUCTION}who wrote it?\n<|im_end|>\n<|im_start|>assistant\n<think>"


@pytest.mark.parametrize(
    "row",
    [
        searchr1_row(),
        searchr1_row(prompt=json.dumps([{"role": "user", "content": f"{INSTRUCTION}who wrote it?"}])),
        searchr1_row(prompt=CHAT),
        searchr1_row(prompt=f"[INST] {INSTRUCTION}who wrote it? [/INST]"),
        searchr1_row(prompt=[{"role": "user", "content": [{"type": "text", "text": "Question: who wrote it?"}]}]),
        searchr1_row(prompt=[{"role": "system", "content": "s"}, {"role": "user", "content": "who wrote it?"}]),
        searchr1_row(question="who wrote it?", prompt="anything"),
        searchr1_row(question=None, extra_info={"split": "train", "index": 3, "question": "who wrote it?"}),
        searchr1_row(reward_model={"ground_truth": {"target": ["Norr"], "question": "who wrote it?"}}, prompt=None),
        searchr1_row(reward_model={"style": "rule", "ground_truth": "Norr"}),
        searchr1_row(reward_model={"style": "rule", "ground_truth": ["Norr"]}),
        searchr1_row(reward_model={"style": "rule", "ground_truth": '{"target": ["Norr"]}'}),
        searchr1_row(reward_model={"style": "rule", "ground_truth": '["Norr"]'}),
        searchr1_row(reward_model='{"style": "rule", "ground_truth": {"target": ["Norr"]}}'),
        searchr1_row(reward_model={"ground_truth": {"target": [["Norr"], [None]]}}),
        searchr1_row(reward_model={"ground_truth": {"gt_answer": ["Norr"]}}),
        searchr1_row(reward_model=None, golden_answers=["Norr"]),
        searchr1_row(reward_model=None, extra_info={"split": "train", "index": 3, "answer": "Norr"}),
    ],
)
def test_rows_made_for_training_are_read_from_lines_and_parquet(tmp_path: Path, row: dict) -> None:
    for questions in (read(tmp_path, [row]), read_parquet(tmp_path, row)):
        (question,) = questions
        assert (question.id, question.text, question.golden_answers) == ("nq-train-3", "who wrote it?", ("Norr",))
        assert question.source == "nq"


@pytest.mark.parametrize(
    "prompt",
    [
        [{"role": "user", "content": f"{INSTRUCTION}who wrote it?\nThink step by step."}],
        [{"role": "user", "content": f"{INSTRUCTION}who wrote it? Put it inside <answer>."}],
        [{"role": "user", "content": f"{INSTRUCTION}who wrote it? Think step by step."}],
        f"{INSTRUCTION}who wrote it?<|eot_id|>",
        [{"role": "user", "content": "Think first. Who wrote it?"}],
        [{"role": "user", "content": "Write a poem"}],
        [],
        "",
        None,
    ],
)
def test_a_prompt_without_a_clean_question_is_refused_with_what_was_found(tmp_path: Path, prompt: object) -> None:
    with pytest.raises(InvalidRequest, match=r"entry 1: found no (clean )?question"):
        read(tmp_path, [searchr1_row(prompt=prompt)])


def test_blank_answers_of_a_training_row_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"row 1: question 'nq-train-3' has no golden answers"):
        read_parquet(tmp_path, searchr1_row(reward_model={"ground_truth": {"target": [""]}}))


def test_two_sources_may_number_their_rows_alike(tmp_path: Path) -> None:
    questions = read_parquet(tmp_path, searchr1_row(), searchr1_row(data_source="hotpotqa"))
    assert [question.id for question in questions] == ["nq-train-3", "hotpotqa-train-3"]
