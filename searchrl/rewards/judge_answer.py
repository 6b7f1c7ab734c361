"""Did the judge say yes or no?"""

import re

_THOUGHT = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
_VERDICT = re.compile(r"[\W_]*(yes|no)\b", re.IGNORECASE)
_WORD = re.compile(r"\b(yes|no)\b", re.IGNORECASE)


def parse_verdict(text: str) -> bool | None:
    """Return True for yes, False for no, None for anything undecided.

    The first word must be the verdict and the other verdict must not occur: "Yes.", "**no**", "Yes, it is" decide;
    "yesterday", "not", "I know: yes", "no, yes" and an empty answer do not. A leading thought is skipped.
    """
    text = _THOUGHT.sub("", text)
    match = _VERDICT.match(text)
    if match is None:
        return None
    verdicts = {word.lower() for word in _WORD.findall(text)}
    return match[1].lower() == "yes" if len(verdicts) == 1 else None
