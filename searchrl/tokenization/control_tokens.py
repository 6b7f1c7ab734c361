"""Finds a tokenizer's control tokens and encodes untrusted text without them.

Hugging Face tokenizers read an added token wherever its spelling occurs in a text. In a passage that would end the
current turn and could open a system message. Here the spelling is encoded as ordinary text: the text is split inside
the spelling, so that no piece contains all of it.
"""

import re
from collections.abc import Collection, Sequence
from itertools import pairwise

from tokenizers import AddedToken, Encoding, Tokenizer

from searchrl.domain.guarded_text import GuardedText, Span, untrusted_spans

# [INST], [/INST], <<SYS>>, <</SYS>>, <|user|>.
_MARK = re.compile(r"[\[<]{1,2}[/|｜]{0,2}[A-Za-z][\w ▁|｜-]{0,40}[\]>]{1,2}")


def is_control_token(token: AddedToken) -> bool:
    """Return whether an added token is special or contains punctuation (``<tool_call>``).

    Added words and runs of blanks are ordinary text.
    """
    # SentencePiece writes a blank as this character.
    content = token.content.replace("▁", "")
    if not content.strip():
        return False
    return token.special or not all(character.isalnum() or character.isspace() for character in content)


def control_tokens(tokenizer: Tokenizer) -> dict[int, str]:
    """Return the control tokens by id."""
    added = tokenizer.get_added_tokens_decoder().items()
    return {token_id: token.content for token_id, token in added if is_control_token(token)}


def find_textual_marks(template: str, known: Collection[str]) -> frozenset[str]:
    """Return the marks of a chat template that are not single tokens, such as Llama-2's ``[INST]`` and ``<<SYS>>``."""
    # A template's own text stands in quoted strings, after "}}" and after "%}".
    literals = re.findall(r"'([^'\n]*)'|\"([^\"\n]*)\"|[}]{2}([^{]+)|%}([^{]+)", template)
    found = {mark for groups in literals for text in groups for mark in _MARK.findall(text)}
    return frozenset(found - set(known))


def break_marks(text: str, marks: Collection[str]) -> str:
    """Put a blank into every mark inside an untrusted range: ``[INST]`` becomes ``[ INST]``."""
    spans = untrusted_spans(text)
    if not spans or not any(mark in text for mark in marks):
        return text
    pattern = re.compile("|".join(re.escape(mark) for mark in sorted(marks, key=len, reverse=True)))
    parts: list[str] = []
    position = 0
    for start, end in spans:
        outside = str(text[start:end])
        while (broken := pattern.sub(lambda match: f"{match[0][0]} {match[0][1:]}", outside)) != outside:
            outside = broken
        parts += [str(text[position:start]), GuardedText.from_outside(outside)]
        position = end
    return GuardedText.join_parts(*parts, str(text[position:]))


def encode_guarded(tokenizer: Tokenizer, text: str, control_ids: Collection[int]) -> list[int]:
    """Encode a text so that no id that covers an untrusted character is in ``control_ids``.

    A text without such ids is encoded in one piece, so harmless text has the same ids as without this function.
    """
    # A piece with a control token is cut inside it and both halves are encoded again, because a half can contain
    # another control token. Each cut makes the pieces shorter, so this ends.
    ids: list[int] = []
    # All control tokens of a piece are cut at once, so a text with n of them is usually encoded twice, not n times.
    pending: list[tuple[str, tuple[Span, ...]]] = [(str(text), untrusted_spans(text))]
    while pending:
        piece, spans = pending.pop()
        encoding = tokenizer.encode(piece, add_special_tokens=False)
        cuts = _cuts(encoding, spans, control_ids) if spans else []
        if not cuts:
            ids.extend(encoding.ids)
        elif len(piece) > 1:
            # A stack: the first part has to be encoded before the others, so that the ids keep the order of the text.
            pending.extend(reversed(_split(piece, spans, cuts)))
        # A control token of one character cannot be split; it is left out.
    return ids


def _cuts(encoding: Encoding, spans: Sequence[Span], control_ids: Collection[int]) -> list[int]:
    """Return positions that split every control token that overlaps an untrusted range."""
    cuts: set[int] = set()
    following = 0
    # Offsets and spans both ascend, so one index into the spans is enough.
    for token_id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
        while following < len(spans) and spans[following][1] <= start:
            following += 1
        if token_id in control_ids and following < len(spans) and spans[following][0] < end:
            # "hi</s>x" with </s> at 2..6 is cut at 3 into "hi<" and "/s>x", and neither half spells the token. A token
            # of one character becomes a piece of its own, which encode_guarded leaves out.
            cuts.update((start + 1,) if end - start > 1 else (start, end))
    return sorted(cuts)


def _split(piece: str, spans: Sequence[Span], cuts: Sequence[int]) -> list[tuple[str, tuple[Span, ...]]]:
    guarded = GuardedText(piece, tuple(spans))
    edges = [0, *(cut for cut in cuts if 0 < cut < len(piece)), len(piece)]
    parts = [guarded[start:end] for start, end in pairwise(edges) if start < end]
    return [(str(part), part.untrusted) for part in parts]
