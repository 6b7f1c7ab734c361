"""Reads training rows of Search-R1, s3 and verl: a rendered prompt, and the answers in ``reward_model``."""

import contextlib
import re
from collections.abc import Mapping, Sequence

from searchrl.datasets.row import BadRow, Row, describe
from searchrl.datasets.shapes.base import COMMON_KEYS, QUESTION_KEYS, RowFields, common_fields, text_of
from searchrl.input_files import parse_json

_MARK = "Question:"
# User turns of a rendered prompt, by the control tokens of the chat formats.
_USER_TURNS = (
    re.compile(r"<\|im_start\|>user\n(.*?)(?:<\|im_end\|>|\Z)", re.DOTALL),
    re.compile(r"<\|start_header_id\|>user<\|end_header_id\|>\n*(.*?)(?:<\|eot_id\|>|\Z)", re.DOTALL),
    re.compile(r"<start_of_turn>user\n(.*?)(?:<end_of_turn>|\Z)", re.DOTALL),
    re.compile(r"\[INST\](.*?)(?:\[/INST\]|\Z)", re.DOTALL),
)
# Never part of a bare question: control tokens, protocol tags, the end of a JSON text.
_UNCLEAN = re.compile(r"<\|[^|>]*\|>|</?[a-z_]+>|\"\s*[}\]]|\[/?INST\]")
_OPTIONS = "\nOptions:"


class SearchR1Shape:
    """Rows with ``prompt``, ``reward_model``, ``extra_info`` and ``data_source``, in JSON or parquet.

    The bare question is taken from ``question``, ``extra_info.question`` or ``reward_model.ground_truth.question``. The
    prompt, which wraps it in an instruction, is the last resort, and only text that is clearly the question is taken.
    """

    name = "search_r1"
    keys: frozenset[str] = COMMON_KEYS | {"prompt", "rewardmodel", "extrainfo"}

    def matches(self, row: Row) -> bool:
        return any(key in row for key in ("rewardmodel", "extrainfo", "prompt"))

    def read(self, row: Row) -> RowFields:
        extra = _as_row(row.get("extrainfo"))
        truth = _ground_truth(row)
        nested_truth = Row(truth) if isinstance(truth, Mapping) else Row({})
        question = (
            text_of(row, QUESTION_KEYS)
            or text_of(extra, QUESTION_KEYS)
            or text_of(nested_truth, QUESTION_KEYS)
            or question_of_prompt(row)
        )
        fields = common_fields(row, question)
        if truth is not None:
            # After answers in columns of the row, which have priority.
            fields.answers.append(truth)
        fields.answers += [value for key in ("answer", "answers") if (value := extra.get(key)) is not None]
        if fields.choices is None:
            fields.choices = extra.first(("choices", "options"))[1]
        index = extra.get("index")
        if isinstance(index, int | float | str) and not isinstance(index, bool):
            # Each source and each split is numbered from 0, so the number alone is not unique.
            number = int(index) if isinstance(index, float) and index.is_integer() else index
            fields.identifier = f"{fields.source or 'row'}-{extra.get('split') or ''}-{number}"
        return fields


def question_of_prompt(row: Row) -> str:
    """Return the question inside the prompt's last user message.

    Raises:
        BadRow: there is no prompt, or its text is not clearly a question alone.
    """
    prompt = row.get("prompt")
    content = _last_user_text(prompt)
    if content is None:
        raise BadRow(
            'found no question: none in "question", "extra_info.question" or "reward_model.ground_truth.question", '
            f'and "prompt" is {describe(prompt)}'
        )
    # The last mark: the instruction before it may contain an example with a mark of its own.
    _, mark, behind = content.rpartition(_MARK)
    question = (behind if mark else content).strip()
    stem = question.partition(_OPTIONS)[0]
    # Nothing may follow the question, and without the mark nothing may precede it: an instruction has sentences.
    is_alone = not stem.rpartition("?")[2].strip() if "?" in stem else bool(mark)
    if not mark:
        is_alone = is_alone and not re.search(r"[.!:;?]\s", stem)
    if not question or "\n" in stem or _UNCLEAN.search(question) or not is_alone:
        raise BadRow(
            f'found no clean question in "prompt" ({describe(question or content)}): add a column "question", or '
            '"question" in "extra_info"'
        )
    return question


def _last_user_text(prompt: object) -> str | None:
    if isinstance(prompt, str):
        text = prompt.strip()
        if text.startswith("["):
            with contextlib.suppress(ValueError):  # Mistral's [INST] is not JSON
                return _last_user_text(parse_json(text))
        for pattern in _USER_TURNS:
            turns = pattern.findall(text)
            if turns:
                return turns[-1]
        return text
    if isinstance(prompt, Sequence):
        messages = [message for message in prompt if isinstance(message, Mapping)]
        # A list without a user's message is read by its last message.
        users = [message for message in messages if message.get("role") == "user"] or messages
        return _content_text(users[-1].get("content")) if users else None
    return None


def _content_text(content: object) -> str | None:
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, Mapping))
    return content if isinstance(content, str) else None


def _as_row(value: object) -> Row:
    """Return an object as a row, also if it is JSON text, as some exports write nested columns."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = parse_json(value)
        except ValueError:
            return Row({})
    return Row(value) if isinstance(value, Mapping) else Row({})


def _ground_truth(row: Row) -> object:
    truth = _as_row(row.get("rewardmodel")).get("groundtruth")
    if isinstance(truth, str) and truth.lstrip().startswith("{"):
        try:
            return parse_json(truth)
        except ValueError:
            return truth
    return truth
