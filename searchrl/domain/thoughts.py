"""Separates a language model's reply from its thoughts.

Reasoning models write their thoughts between tags. A server without a reasoning parser leaves them in the reply: with
both tags (``<think>...</think>``), without the opening tag (the chat template wrote it into the prompt), or without the
closing tag (the token limit cut the thought). A thought is never part of an answer, of a format check or of a verdict.
"""

import re

# What reasoning models write: <think> (DeepSeek, Qwen), <seed:think> (Seed-OSS), [THINK] (Magistral), ◁think▷ (Kimi),
# <thinking>, <reasoning> and others (prompted models), <|START_THINKING|> (Command A), <|begin_of_thought|> (Sky-T1),
# <|channel|>analysis<|message|> and <|channel|>final<|message|> (gpt-oss; without its control tokens: assistantfinal),
# <|channel>thought and <channel|> (Gemma 4). Square brackets count in capitals only: "[think]" is text.
_TAG = re.compile(
    r"<\|?\s*(?P<close>/?)\s*(?i:(?:seed:)?(?:think(?:ing)?|thoughts?|reasoning|reflection|scratchpad))\s*\|?>"
    r"|\[(?P<close_square>/?)THINK\]"
    r"|◁(?P<close_triangle>/?)think▷"
    r"|<\|(?:START_THINKING|begin_of_thought)\|>|(?P<close_words><\|(?:END_THINKING|end_of_thought)\|>)"
    r"|(?:<\|start\|>assistant)?<\|channel\|>(?:analysis|commentary)[^<>\n]{0,60}<\|message\|>"
    r"|(?P<close_channel>(?:<\|start\|>assistant)?<\|channel\|>final[^<>\n]{0,60}<\|message\|>|assistantfinal)"
    r"|<\|channel>thought|(?P<close_gemma><channel\|>)"
)
_CLOSING_GROUPS = ("close_words", "close_channel", "close_gemma")
# Markers around an answer that are not part of it.
_FRAME = re.compile(r"<\|(?:START|END)_RESPONSE\|>|<\|(?:begin|end)_of_solution\|>|<\|(?:end|return)\|>\Z")


def strip_thoughts(text: str) -> str:
    """Return the text without its thoughts and without white space around it.

    | the text | what is a thought |
    |---|---|
    | ``<think>a</think>b`` | the tags and everything between them, including nested thoughts |
    | ``a</think>b`` | everything before the closing tag: the prompt opened it |
    | ``a<think>b`` | everything after the opening tag: the reply was cut |
    | ``<think>a<think>b</think>c`` | up to the last closing tag, if fewer are closed than opened |
    """
    stripped = _strip_once(text)
    # Parts are only ever removed, so every round shortens the text and the loop ends.
    while stripped != text:  # the remaining parts may form a new tag: <thi<think></think>nk>
        text, stripped = stripped, _strip_once(stripped)
    return stripped


def starts_inside_thought(text: str) -> bool:
    """Return whether the text closes a thought that it does not open, because the prompt opened it."""
    first = _TAG.search(text)
    return first is not None and _closes(first)


def _strip_once(text: str) -> str:
    tags = [(match, _closes(match)) for match in _TAG.finditer(text)]
    kept: list[str] = []
    position, index = 0, 0
    while index < len(tags):
        tag, closes = tags[index]
        if closes:
            # Nothing opened this thought, so the prompt did: all text before it belongs to the thought.
            kept.clear()
            position, index = tag.end(), index + 1
            continue
        kept.append(text[position : tag.start()])
        last = _end_of_thought(tags, index)
        if last is None:  # the token limit cut the thought, and with it the answer
            return _FRAME.sub("", "".join(kept)).strip()
        position, index = tags[last][0].end(), last + 1
    return _FRAME.sub("", "".join([*kept, text[position:]])).strip()


def _closes(tag: re.Match[str]) -> bool:
    slashes = (tag["close"], tag["close_square"], tag["close_triangle"])
    return "/" in slashes or any(tag[group] for group in _CLOSING_GROUPS)


def _end_of_thought(tags: list[tuple[re.Match[str], bool]], opening: int) -> int | None:
    """Return the index of the tag that closes the thought opened at ``opening``; None if no tag does."""
    # "<think>a<think>b</think>c" opens two thoughts and closes one, so its depth never returns to 0. The last closing
    # tag then ends the outer thought, too: a thought can mention the tag without closing it.
    depth, last_closing = 0, None
    for index in range(opening, len(tags)):
        if tags[index][1]:
            depth, last_closing = depth - 1, index
            if depth == 0:
                return index
        else:
            depth += 1
    return last_closing
