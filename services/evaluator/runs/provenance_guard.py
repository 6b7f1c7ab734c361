"""Ensures that all answers of a run come from one model, one index generation, one prompt and one judge."""

from collections.abc import Iterable, Iterator, Mapping

from searchrl.domain.answer import Provenance
from searchrl.errors import Conflict
from services.evaluator.records.episode import Episode

ProvenanceValues = dict[str, tuple[str, ...]]

_TITLES = {
    "generator_model": "generator's model",
    "index_generation": "index generation",
    "mode": "retrieval mode",
    "template_hash": "generator's prompt template",
    "max_context_tokens": "token budget of the documents",
    "max_answer_tokens": "token budget of the answer",
    "temperature": "generator's temperature",
    "judge_version": "judge",
    "top_k": "number of passages per search",
    "searcher_model": "searcher's model",
    "searcher_version": "searcher's version",
}
_DEFAULT_MODE = "the index's default"


class ProvenanceChanged(Conflict):
    """An answer comes from another model, index, prompt or setting than the answers before it."""


class ProvenanceGuard:
    """Keeps the models, index generations, prompts and settings behind the answers of one run.

    Args:
        allow_changes: record a second value instead of refusing it.
    """

    def __init__(self, *, allow_changes: bool = False, index_generation: str = "") -> None:
        self._allow_changes = allow_changes
        self._seen: dict[str, dict[str, None]] = {}
        # The generation at the creation of the run: the first answer already has to come from it.
        if index_generation:
            self._seen["index_generation"] = {index_generation: None}

    def restore(self, episodes: Iterable[Episode]) -> None:
        """Add the values of an earlier part of the run."""
        # Without a check: these rows passed it when they were stored, or changes were allowed then.
        for episode in episodes:
            for name, value in list_facts(episode):
                self._seen.setdefault(name, {})[value] = None

    def check(self, episode: Episode) -> None:
        """Compare an answer, and its verdict if it has one, with those before it.

        Raises:
            ProvenanceChanged: one of its values differs, and changes are not allowed.
        """
        # The first value of a name is recorded while comparing; a second one only after the loop, if it is allowed.
        facts = list(list_facts(episode))
        if not self._allow_changes:
            for name, value in facts:
                known = self._seen.setdefault(name, {value: None})
                if value not in known:
                    raise ProvenanceChanged(_describe_change(episode, name, ", ".join(known), value))
        for name, value in facts:
            self._seen.setdefault(name, {})[value] = None

    def values(self) -> ProvenanceValues:
        """Every value seen, by name; "searcher_version of s3" if a value belongs to one column."""
        return {name: tuple(values) for name, values in self._seen.items()}


def list_facts(episode: Episode) -> Iterator[tuple[str, str]]:
    """The known facts of one episode as (name, value); facts that it does not report are omitted."""
    made = episode.answer.provenance
    # Empty if the searcher wrote the answer itself: then the generator's settings had no effect on it.
    if made.generator_model:
        yield "generator_model", made.generator_model
        yield "template_hash", made.template_hash
        yield "max_context_tokens", str(made.max_context_tokens)
        yield "max_answer_tokens", str(made.max_answer_tokens)
        yield "temperature", f"{made.temperature:g}"
    for generation in made.index_generations:
        yield "index_generation", generation
    if made.index_generations:
        yield "mode", made.mode or _DEFAULT_MODE
    if episode.verdict is not None and episode.verdict.judge_version:
        yield "judge_version", episode.verdict.judge_version
    yield from _list_column_facts(episode.label, made)


def collect_provenance(episodes: Iterable[Episode]) -> ProvenanceValues:
    """Every value behind the stored episodes, by name."""
    guard = ProvenanceGuard()
    guard.restore(episodes)
    return guard.values()


def describe_name(name: str) -> str:
    """A name of ``values`` as text for a person: "searcher's version of s3"."""
    fact, of, label = name.partition(" of ")
    return f"{_TITLES.get(fact, fact)}{of}{label}"


def find_changes(values: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The names that have more than one value."""
    return [name for name, seen in values.items() if len(seen) > 1]


def _list_column_facts(label: str, made: Provenance) -> Iterator[tuple[str, str]]:
    """Facts that may differ between columns, but not within one."""
    if made.top_k:
        yield f"top_k of {label}", str(made.top_k)
    if made.searcher_model:
        yield f"searcher_model of {label}", made.searcher_model
    if made.searcher_version:
        yield f"searcher_version of {label}", made.searcher_version


def _describe_change(episode: Episode, name: str, before: str, now: str) -> str:
    return (
        f"the {describe_name(name)} changed during the run, from {before} to {now} (question "
        f"{episode.question_id!r}, {episode.label}); choose another run id, or allow changes"
    )
