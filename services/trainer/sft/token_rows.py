"""Turns rows into token ids and marks the policy's: what the model writes when it is prompted with what precedes.

A conversation is rendered message by message with the model's chat template. Before each trained message it is rendered
as a prompt is, up to the start of the assistant's turn; the text that the message adds to that prompt is the policy's,
up to and including the token that ends the turn. So the mask follows from the renderings, and no string is searched.

    messages                  user           assistant               user
    rendered prompt           <user>Hi<end>
                              <assistant>
    added by the message                     Hello<end>\\n
    mask                      False          True (\\n: False)        left out: nothing after it is trained
"""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from searchrl.datasets.row import BadRow
from searchrl.errors import ConfigurationError
from searchrl.tokenization.model_files import tokenizer_hash
from searchrl.tokenization.model_tokenizer import ModelTokenizer, refuse_changing_date
from services.trainer.algorithms.sft import TokenDemonstration
from services.trainer.sft.chat_rows import Conversation, Message, RowContent, SampledTokens, TextPair, read_row
from services.trainer.sft.row_files import PlacedRow, read_rows

logger = logging.getLogger(__name__)
MOST_BAD_ROWS = 20
"""Bad rows that are named; one mistake in a file is often in every row, and reading on would show nothing new."""
PLACES_SHOWN = 5


class Piece(NamedTuple):
    """A part of a row's text, and whether the policy writes it."""

    text: str
    is_trained: bool


@dataclass(frozen=True, slots=True)
class TooLong:
    """A row that was left out."""

    place: str
    tokens: int


@dataclass(frozen=True, slots=True)
class TokenRows:
    """The rows of a data set as tokens, in the order of the files, and those that were too long."""

    rows: tuple[TokenDemonstration, ...]
    too_long: tuple[TooLong, ...]
    max_tokens: int | None

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the tokens and masks of all rows."""
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(np.int64(len(row.token_ids)).tobytes())
            digest.update(np.asarray(row.token_ids, dtype=np.int64).tobytes())
            digest.update(np.asarray(row.action_mask, dtype=np.bool_).tobytes())
        return digest.hexdigest()

    def describe(self) -> str:
        """Count rows and tokens, and name the rows that were left out."""
        tokens = sum(len(row.token_ids) for row in self.rows)
        trained = sum(int(np.count_nonzero(row.action_mask)) for row in self.rows)
        counts = f"{len(self.rows)} rows of {tokens} tokens, {trained} of them the policy's"
        if not self.too_long:
            return f"{counts}; no row was left out"
        shown = "; ".join(f"{row.place} ({row.tokens} tokens)" for row in self.too_long[:PLACES_SHOWN])
        more = f"; and {len(self.too_long) - PLACES_SHOWN} more" if len(self.too_long) > PLACES_SHOWN else ""
        left_out = f"{len(self.too_long)} left out as longer than {self.max_tokens} tokens"
        return f"{counts}; {left_out}: {shown}{more}"


def read_token_rows(
    files: Sequence[Path], model: Path, max_tokens: int | None, trained_messages: Literal["all", "last"] = "all"
) -> TokenRows:
    """Read and tokenize every row with the tokenizer of a model folder.

    Raises:
        ConfigurationError: a file cannot be read, rows cannot be used, or no row is left; names files and places.
    """
    rows: list[TokenDemonstration] = []
    too_long: list[TooLong] = []
    tokenizer = ModelTokenizer.from_folder(model)
    for place, row in _tokenize_each(read_rows(files, tokenizer_hash(model)), tokenizer, trained_messages):
        if max_tokens is not None and len(row.token_ids) > max_tokens:
            too_long.append(TooLong(place, len(row.token_ids)))
        else:
            rows.append(row)
    found = TokenRows(tuple(rows), tuple(too_long), max_tokens)
    if not rows:
        raise ConfigurationError(f"no row is left to train on: {found.describe()}")
    return found


def _tokenize_each(
    placed: Iterator[PlacedRow], tokenizer: ModelTokenizer, trained_messages: Literal["all", "last"]
) -> Iterator[tuple[str, TokenDemonstration]]:
    bad: list[str] = []
    for place, row in placed:
        try:
            content = read_row(row)
            tokens = tokenize_row(content, tokenizer, trained_messages)
        except BadRow as error:
            bad.append(f"{place}: {error}")
            if len(bad) == MOST_BAD_ROWS:
                break
        else:
            if not bad:  # otherwise the run is refused below
                yield place, tokens
    if bad:
        more = f"; and {len(bad) - PLACES_SHOWN} more" if len(bad) > PLACES_SHOWN else ""
        raise ConfigurationError("; ".join(bad[:PLACES_SHOWN]) + more)


def tokenize_row(
    content: RowContent, tokenizer: ModelTokenizer, trained_messages: Literal["all", "last"] = "all"
) -> TokenDemonstration:
    """Return the tokens of a row and which of them the policy writes; what follows the last of these is left out.

    Raises:
        BadRow: the chat template refuses the row, or renders its beginning differently when more follows.
        ConfigurationError: the model has no chat template, or one that prints today's date.
    """
    if isinstance(content, SampledTokens):
        return _check_sampled(content, tokenizer)
    if not tokenizer.eos_ids:
        raise ConfigurationError("the model has no end-of-sequence token, so it could not learn where to stop")
    if isinstance(content, TextPair):
        pieces = [Piece(content.prompt, False), Piece(content.completion, True)]
        return _encode(pieces, tokenizer, tokenizer.first_ids())
    trained = content.trained if trained_messages == "all" else content.trained[-1:]
    return _encode(_render(content, trained, tokenizer), tokenizer, [])


def _check_sampled(content: SampledTokens, tokenizer: ModelTokenizer) -> TokenDemonstration:
    """Return a trajectory's tokens as they were sampled: nothing is decoded and encoded again."""
    if not all(0 <= token_id < tokenizer.vocab_size for token_id in content.ids):
        raise BadRow(f"it has token ids that the tokenizer, of {tokenizer.vocab_size} tokens, does not have")
    return _demonstration(content.ids, content.mask)


def _render(content: Conversation, trained: Sequence[int], tokenizer: ModelTokenizer) -> list[Piece]:
    template = tokenizer.required_template()
    messages, variables = content.messages, content.variables

    def render(count: int, as_prompt: bool) -> str:
        try:
            return template.render_data(messages[:count], variables, as_prompt)
        except ConfigurationError as error:
            raise BadRow(str(error)) from error

    pieces: list[Piece] = []
    text = ""
    for index in trained:
        prompt, answered = render(index, True), render(index + 1, False)
        _require_prefix(text, prompt, index)
        if not answered.startswith(prompt):
            raise BadRow(
                f"the chat template renders message {index + 1} in another way than it begins the assistant's turn in "
                "a prompt, so the tokens of the assistant are unknown; use a template in which both begin alike"
            )
        written = answered[len(prompt) :]
        _check_written(messages[index], written, index + 1, tokenizer)
        pieces += [Piece(prompt[len(text) :], False), Piece(written, True)]
        text = answered
    _require_prefix(text, render(len(messages), False), len(messages))
    refuse_changing_date(template, "the model folder")
    return pieces


def _check_written(message: Message, written: str, number: int, tokenizer: ModelTokenizer) -> None:
    """Refuse a message that the template does not print, or that the policy could not write in one turn."""
    for call in message.get("tool_calls", ()):
        if call["function"]["name"] not in written:
            raise BadRow(f"the chat template does not print the tool calls of message {number}")
    # The end alone, because templates may move or leave out what precedes it, such as thoughts.
    lines = message["content"].strip().splitlines()
    if lines and lines[-1].strip() not in written:
        raise BadRow(f"the chat template does not print the text of message {number}")
    if any(token_id in tokenizer.eos_ids for token_id in tokenizer.encode(message["content"])):
        raise BadRow(f"the text of message {number} holds a token that ends the assistant's turn")


def _require_prefix(text: str, longer: str, count: int) -> None:
    if not longer.startswith(text):
        raise BadRow(
            f"the chat template renders the first messages differently when {count} are given, so the tokens of the "
            "assistant are unknown; train the last message of each row alone (trained_messages=last), or use a "
            "template that leaves earlier messages as they are"
        )


def _encode(pieces: Sequence[Piece], tokenizer: ModelTokenizer, first_ids: Sequence[int]) -> TokenDemonstration:
    ids, mask = list(first_ids), [False] * len(first_ids)
    text = ""
    encoded: list[int] = []  # the ids of ``text``
    added: list[int] = []
    for piece in pieces:
        text += piece.text
        whole = tokenizer.encode(text)
        # The text up to here is what the model is prompted with, so its ids stay as they are. If the next characters
        # would merge with them into other tokens, the piece is encoded alone, as a model would have to write it.
        is_continued = whole[: len(encoded)] == encoded
        added = whole[len(encoded) :] if is_continued else tokenizer.encode(piece.text)
        encoded = encoded + added
        ids += added
        mask += _mask_until_end(added, tokenizer) if piece.is_trained else [False] * len(added)
    if not any(token_id in tokenizer.eos_ids for token_id in added):
        ids.append(_end_id(tokenizer))
        mask.append(True)
    return _demonstration(ids, mask)


def _demonstration(ids: Sequence[int], mask: Sequence[bool]) -> TokenDemonstration:
    """Leave out what follows the last trained token."""
    if mask[0]:
        raise BadRow("nothing precedes the first of the assistant's tokens, which therefore cannot be predicted")
    length = max(index for index, is_trained in enumerate(mask) if is_trained) + 1
    return TokenDemonstration(np.asarray(ids[:length], dtype=np.int32), np.asarray(mask[:length], dtype=np.bool_))  # pyright: ignore


def _mask_until_end(ids: Sequence[int], tokenizer: ModelTokenizer) -> list[bool]:
    """Mark the ids up to the first that ends a turn; what a template prints behind it, the policy never writes."""
    count = next((index for index, token_id in enumerate(ids, 1) if token_id in tokenizer.eos_ids), len(ids))
    return [True] * count + [False] * (len(ids) - count)


def _end_id(tokenizer: ModelTokenizer) -> int:
    """Return the token that ends a last message without an end of its own, so that the model learns to stop."""
    if tokenizer.end_id is None:
        raise BadRow(
            "the last message ends without a token that ends a turn, and the model names several "
            f"({', '.join(map(str, sorted(tokenizer.eos_ids)))}); name one as eos_token in tokenizer_config.json"
        )
    return tokenizer.end_id
