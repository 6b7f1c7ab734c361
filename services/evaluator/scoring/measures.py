"""Measures one answer, and summarizes the measures of a column over its questions."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from searchrl.domain.question import Choice
from searchrl.rewards.answers import exact_match, token_f1
from searchrl.statistics.intervals import (
    Estimate,
    bootstrap_mean,
    bootstrap_proportion,
    normal_mean,
    quantile_estimate,
)
from services.evaluator.records.episode import Episode


@dataclass(frozen=True, slots=True)
class Measure:
    """One number of an episode. ``read`` returns None if there is nothing to measure; shares lie in 0..1."""

    name: str
    title: str
    read: Callable[[Episode], float | None]
    is_proportion: bool = False


def _correct(episode: Episode) -> float | None:
    return None if episode.correct is None else float(episode.correct)


def _is_cut(episode: Episode) -> float | None:
    """Whether the answer ended at the token limit; None for rows of older stores, which lack it."""
    return float(episode.answer.finish_reason == "length") if episode.answer.finish_reason else None


def _cut_documents(episode: Episode) -> float | None:
    """Number of documents that the token budget truncated or excluded."""
    answer = episode.answer
    return float(len(answer.cut) + len(answer.left_out)) if answer.finish_reason else None


ACCURACY = Measure("accuracy", "Accuracy", _correct, is_proportion=True)
SECONDS = Measure("seconds", "Seconds", lambda episode: episode.answer.seconds)

MEASURES = (
    ACCURACY,
    Measure("exact_match", "Exact match", lambda episode: episode.exact_match, is_proportion=True),
    Measure("f1", "F1", lambda episode: episode.f1, is_proportion=True),
    Measure("gold_recall", "Gold recall", lambda episode: episode.gold_recall, is_proportion=True),
    Measure("searches", "Searches", lambda episode: float(episode.answer.searches)),
    Measure("documents", "Documents", lambda episode: float(len(episode.answer.documents))),
    Measure("context_tokens", "Context tokens", lambda episode: float(episode.answer.usage.context_tokens)),
    Measure("cut_answers", "Cut answers", _is_cut, is_proportion=True),
    Measure("cut_documents", "Cut documents", _cut_documents),
    SECONDS,
)
# Times are skewed: a few slow answers move the mean, and users notice the slow ones.
SECONDS_QUANTILES = {"seconds_p50": 0.5, "seconds_p95": 0.95}
MEASURE_BY_NAME = {measure.name: measure for measure in MEASURES}


def values_by_question(episodes: Iterable[Episode], measure: Measure) -> dict[str, float]:
    """The measure of every answered question that has it, by question id; failed episodes have none."""
    values: dict[str, float] = {}
    for episode in episodes:
        # A failed row has zeros in place of measured values.
        value = None if episode.failure else measure.read(episode)
        if value is not None:
            values[episode.question_id] = value
    return values


def summarize(episodes: Iterable[Episode], *, seed: int = 0) -> dict[str, Estimate]:
    """Every measure's mean with its bootstrap interval, and the median and 95th percentile of the seconds."""
    rows = list(episodes)
    estimates: dict[str, Estimate] = {}
    for measure in MEASURES:
        values = list(values_by_question(rows, measure).values())
        if values:
            estimate = bootstrap_proportion if measure.is_proportion else bootstrap_mean
            estimates[measure.name] = estimate(values, seed=seed)
    seconds = list(values_by_question(rows, SECONDS).values())
    for name, quantile in SECONDS_QUANTILES.items():
        if seconds:
            estimates[name] = quantile_estimate(seconds, quantile)
    return estimates


def summarize_quickly(values: Mapping[str, list[float]]) -> dict[str, Estimate]:
    """Means with normal intervals, for a run in progress."""
    return {name: normal_mean(sample) for name, sample in values.items() if sample}


def answer_exact_match(answer: str, golden_answers: Sequence[str], choices: Sequence[Choice] = ()) -> float:
    """1.0 if the answer equals a golden answer, or picks a golden option of ``choices``, else 0.0."""
    return float(exact_match(answer, golden_answers, choices))


def answer_f1(answer: str, golden_answers: Sequence[str], choices: Sequence[Choice] = ()) -> float:
    """Best F1 over the golden answers, on tokens, or on characters of text written without spaces (CJK)."""
    return float(token_f1(answer, golden_answers, choices))
