"""Compares an answer with the golden answers: exact match, token F1, and the option that it picks."""

import re
from collections import Counter
from collections.abc import Sequence

from searchrl.domain.question import Choice
from searchrl.domain.thoughts import strip_thoughts
from searchrl.rewards.answer_normalization import comparable_forms, span_tokens, split_units
from searchrl.rewards.polarity import polarity_of, polarity_of_golden, undecorate
from searchrl.rewards.span_match import SentenceTokens, is_left_open, is_safe_span, span_positions

_LABEL = r"(?P<label>[A-Za-z]|\d{1,2})"
# "C", "C.", "(C)", "Option C" as the complete answer, after ``undecorate``.
_ALONE = re.compile(rf"\A(?:(?:option|choice|answer)\s*:?\s*)?{_LABEL}\s*[.):]?\Z", re.IGNORECASE)
# "C: cold water", "C. cold water", "C) cold water", "C - cold water", "C\ncold water".
_LEADING = re.compile(
    rf"\A(?:(?:option|choice|answer)\s*:?\s*)?{_LABEL}(?:\s*[.):,]\s+|\s+[-–—]\s+|\s*\n)(?P<text>.*)\Z", re.DOTALL
)
# "The answer is C", "Answer: C", "I choose option C", "the correct choice would be C".
_ANNOUNCED = re.compile(
    r"\b(?:answer|option|choice|choose|pick|select)\b(?:\s+(?:is|would\s+be|should\s+be|must\s+be))?\s*:?\s*"
    r"(?:(?:option|choice|letter)\s+)?(?P<label>[A-Z]|\d{1,2})(?![\w'’]|\s*-\s*\w)(?=(?P<behind>[^\n]*))",
    re.IGNORECASE,
)
# After a label: "Option C is wrong", "C isn't right", "C cannot be the answer".
_DISMISSED = re.compile(
    r"\A\s*[:.),]?\s*(?:(?:is|was|are|would\s+be|seems)\s+(?:also\s+|clearly\s+)?(?:not|wrong|incorrect|false|out|ruled)\b"
    r"|(?:is|was|does|do|can|could|would)n['’]?t\b|cannot\b|can\s+not\b|does\s+not\b)",
    re.IGNORECASE,
)
# A label anywhere in a sentence. "A" is an article and "I" a pronoun there.
_MENTIONED = re.compile(r"(?<![\w'’-])([B-HJ-Z])(?![\w'’-])")


def exact_match(answer: str, golden_answers: Sequence[str], choices: Sequence[Choice] = ()) -> bool:
    """Return whether the answer equals a golden answer, in the first of ``comparable_forms`` that is not empty.

    Thoughts are not part of the answer, and an empty answer equals nothing. "True" and "yes" are equal, as are "false"
    and "no". With ``choices`` the option that the answer picks counts: "(B)", "B: fire", "The answer is B" are equal.
    """
    answer = strip_thoughts(answer)
    if not answer:
        return False
    if choices:
        chosen = find_choice(answer, choices)
        return chosen is not None and is_golden_choice(chosen, golden_answers, choices)
    # Compared before the words, because "True" and "yes" have none in common.
    polarity = polarity_of_golden(answer)
    if polarity is not None and polarity in map(polarity_of_golden, golden_answers):
        return True
    forms = comparable_forms(answer)
    return any(_equals(forms, golden) for golden in golden_answers)


def _equals(forms: tuple[str, str, str], golden: str) -> bool:
    pairs = zip(forms, comparable_forms(golden), strict=True)
    return next((mine == theirs for mine, theirs in pairs if theirs), False)


def token_f1(answer: str, golden_answers: Sequence[str], choices: Sequence[Choice] = ()) -> float:
    """Return the best F1 over the golden answers, in 0..1: on words, and on characters in scripts without spaces (CJK).

    Answers are compared in the same forms as by ``exact_match``; an exact match has 1, an empty answer 0.
    """
    answer = strip_thoughts(answer)
    if not answer:
        return 0.0
    if exact_match(answer, golden_answers, choices):
        return 1.0
    forms = comparable_forms(answer)
    return max((_best_form(forms, golden) for golden in golden_answers), default=0.0)


def _best_form(forms: tuple[str, str, str], golden: str) -> float:
    pairs = zip(forms, comparable_forms(golden), strict=True)
    return next((overlap_f1(split_units(mine), split_units(theirs)) for mine, theirs in pairs if theirs), 0.0)


def overlap_f1(predicted: Sequence[str], golden: Sequence[str]) -> float:
    """Return the F1 of two multisets: 1 if both are empty, 0 if only one is."""
    if not predicted or not golden:
        return float(not predicted and not golden)
    # F1 = 2PR / (P + R) with P = common / predicted and R = common / golden. Example: of 3 words 2 are among 4 golden
    # ones, so P = 2/3, R = 1/2 and F1 = 4/7.
    common = (Counter(predicted) & Counter(golden)).total()
    return 2 * common / (len(predicted) + len(golden))


def find_choice(answer: str, choices: Sequence[Choice]) -> Choice | None:
    """Return the option that the answer picks by its label or its text; None if it picks none, or several.

    | answer, of A: cold water, B: fire | picks |
    |---|---|
    | "A", "(A)", "**A**", "\\boxed{A}", "Option A" | A |
    | "A: cold water", "A. Cold water, because ..." | A |
    | "The answer is A.", "I choose (A)." | A |
    | "Cold water", "It is cold water." | A |
    | "A: fire", "A or B", "not fire", "Vitamin A", "Option A is wrong", "B, since cold water ..." | none |
    """
    text = undecorate(answer)
    if not text:
        return None
    by_text, labeled = _by_text(text, choices), _by_label(text, choices)
    if by_text is not None:
        return by_text if labeled in (None, by_text) else None  # options that are labels of others: 1: two, 2: one
    named = _by_polarity(text, choices) or _by_span(text, choices)
    if labeled is None and named is not None and _mentions_another(text, named, choices):
        return None
    if labeled is not None and named is not None and labeled != named:
        return None
    return labeled or named


def find_letter(answer: str) -> str | None:
    """Return the label that the answer picks if the options are not known: "C" for "(C)" and "C: cold water"."""
    text = undecorate(answer)
    match = _ALONE.match(text) or _LEADING.match(text)
    labels = {match["label"].upper()} if match else _announced_labels(text)
    return labels.pop() if len(labels) == 1 else None


def is_golden_choice(choice: Choice, golden_answers: Sequence[str], choices: Sequence[Choice]) -> bool:
    """Return whether the golden answers refer to this option: by label and text, by "B: fire", by label, or by text.

    The first of these four forms that fits any option decides, so a text that equals another option's label does not
    make that option golden.
    """
    # Articles are kept in the comparison: without them the label "A" would be empty.
    golden = {_plain(answer) for answer in golden_answers}
    for is_meant in (
        lambda option: _plain(option.label) in golden and _plain(option.text) in golden,
        lambda option: _plain(f"{option.label}: {option.text}") in golden,
        lambda option: _plain(option.label) in golden,
        lambda option: _plain(option.text) in golden,
    ):
        meant = [option for option in choices if is_meant(option)]
        if meant:
            return choice in meant
    return False


def _by_text(text: str, choices: Sequence[Choice]) -> Choice | None:
    """Return the option whose text, or label and text, is the complete answer.

    Articles are not removed here, because "A" is also a label.
    """
    found = [
        choice for choice in choices if _plain(text) in (_plain(choice.text), _plain(f"{choice.label}: {choice.text}"))
    ]
    return found[0] if len(found) == 1 else None


def _by_polarity(text: str, choices: Sequence[Choice]) -> Choice | None:
    """Return the option with the meaning yes or no with which the answer begins."""
    said = polarity_of(text)
    found = [choice for choice in choices if said is not None and polarity_of_golden(choice.text) is said]
    return found[0] if len(found) == 1 else None


def _mentions_another(text: str, named: Choice, choices: Sequence[Choice]) -> bool:
    """Return whether the text contains the label of another option: "I think it is B, for cold water is no fire"."""
    others = {choice.label.upper() for choice in choices if choice != named}
    return any(label in others for label in _MENTIONED.findall(text))


def _by_label(text: str, choices: Sequence[Choice]) -> Choice | None:
    by_label = {choice.label.upper(): choice for choice in choices}
    match = _ALONE.match(text) or _LEADING.match(text)
    labels = {match["label"].upper()} if match else _announced_labels(text)
    return by_label.get(labels.pop()) if len(labels) == 1 else None


def _announced_labels(text: str) -> set[str]:
    """Return the labels that the text announces and does not dismiss.

    A lower-case "a" followed by a word is an article: "the answer is a heater".
    """
    # Both are collected first, and dismissed ones removed at the end: "The answer is B, since option C is wrong" and
    # "Option C is wrong, so the answer is B" announce the same.
    labels, dismissed = set[str](), set[str]()
    for match in _ANNOUNCED.finditer(text):
        label, behind = match["label"], match["behind"]
        if label.islower() and re.match(r"\s+\w", behind):
            continue
        if _DISMISSED.match(behind):
            dismissed.add(label.upper())
            continue
        labels.add(label.upper())
        other = re.match(r"\s*(?:or|and|/|,)\s*([A-Z]|\d{1,2})\b(?!['’])", behind)
        if other is not None:
            labels.add(other[1].upper())
    return labels - dismissed


def _by_span(text: str, choices: Sequence[Choice]) -> Choice | None:
    """Return the only option whose text occurs in the answer.

    An option that is part of the text of another found option does not count. Only texts for which a span is proof are
    considered; a negation of one, or a doubt, leaves the answer undecided.
    """
    sentences = SentenceTokens.of(text)
    found: list[tuple[Choice, list[str]]] = []
    for choice in choices:
        span = span_tokens(choice.text)
        starts = list(span_positions(sentences.tokens, span)) if is_safe_span(span) else []
        if any(is_left_open(sentences, start, len(span)) for start in starts):
            return None
        if starts:
            found.append((choice, span))
    longest = [
        choice
        for choice, span in found
        if not any(len(other) > len(span) and next(span_positions(other, span), None) is not None for _, other in found)
    ]
    return longest[0] if len(longest) == 1 else None


def _plain(text: str) -> str:
    _, with_articles, with_punctuation = comparable_forms(text)
    return with_articles or with_punctuation
