"""Provides the method ``s3``, and the online run of a trained searcher, which ``search_r1`` uses as well."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, SecretStr

from searchrl.agent.profile import PROFILE_FILE, SearcherProfile
from searchrl.agent.search_loop import search_loop
from searchrl.agent.types import DocumentsFound, Generation, Policy, Sampling, Tokenizer
from searchrl.clients.remote_policy import RemotePolicy
from searchrl.clients.retriever_client import RetrieverClient
from searchrl.domain.answer import Answer
from searchrl.domain.question import Question
from searchrl.domain.trajectory import NOT_SAMPLED, Trajectory
from searchrl.errors import ConfigurationError
from searchrl.platform.request_context import request_id
from searchrl.platform.settings import Section
from searchrl.storage.artifact_manifest import read_artifact
from searchrl.tokenization.model_tokenizer import ModelTokenizer
from services.generator.methods.base import (
    AnsweringMethod,
    Emit,
    MethodOptions,
    MethodParts,
    RecordingRetriever,
    add_retrieval,
)
from services.generator.prompting.context_answerer import ContextAnswerer

SEARCH_R1 = "search_r1"
"""The protocol whose searcher writes the answer itself, and the method that serves it; others are served as ``s3``."""


class SearcherSettings(Section):
    """The searcher that s3 or search_r1 runs."""

    model_dir: Path = Field(description="Model folder with the tokenizer and searcher.json.")
    base_url: str = Field(description="OpenAI-compatible server that serves the searcher with token ids.")
    model: str = Field(description="The searcher's name there.")
    key: SecretStr | None = Field(default=None, description="API key of that server.")
    temperature: NonNegativeFloat = Field(default=0.0, le=2, description="Used if a question names none; 0 is greedy.")
    timeout_seconds: PositiveFloat = Field(default=60.0, description="Time for one turn, retries included.")


@dataclass(frozen=True, slots=True)
class PublishedSearcher:
    """The searcher's policy version (-1: unknown) and its weights' fingerprint, from the model folder."""

    version: int = NOT_SAMPLED
    fingerprint: str = ""


UNPUBLISHED = PublishedSearcher()


class CountingPolicy:
    """A policy during one answer; each call counts its entire prompt, as a model server would charge it."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.prompt_tokens = 0
        self.completion_tokens = 0

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, rollout_id: str) -> Generation:
        """See ``searchrl.agent.types.Policy``."""
        sampled = await self._policy.generate(prompt_ids, sampling, rollout_id)
        self.prompt_tokens += len(prompt_ids)
        self.completion_tokens += len(sampled.ids)
        return sampled


@dataclass(frozen=True, slots=True)
class GatheredDocuments:
    """The searcher's trajectory for one question, with what is recorded about its calls."""

    trajectory: Trajectory
    policy: CountingPolicy
    retrieval: RecordingRetriever
    top_k: int
    model: str
    versions: tuple[int, ...]
    fingerprint: str

    def complete(self, written: Answer) -> Answer:
        """Add the searcher's part to the written answer."""
        provenance = replace(
            add_retrieval(written.provenance, self.retrieval, self.top_k),
            searcher_model=self.model,
            # "v7:" and 12 hex digits of the weights' fingerprint, or "v6+v7" if the weights changed during the answer.
            searcher_version="+".join(f"v{version}" for version in self.versions)
            + (f":{self.fingerprint[:12]}" if self.fingerprint else ""),
        )
        return replace(
            written,
            searches=self.trajectory.searches,
            stop_reason=self.trajectory.stop_reason,
            trajectory=self.trajectory,
            policy_version=f"v{self.versions[-1]}" if self.versions else "",
            usage=replace(
                written.usage,
                searcher_prompt_tokens=self.policy.prompt_tokens,
                searcher_completion_tokens=self.policy.completion_tokens,
            ),
            provenance=provenance,
        )


@dataclass(frozen=True, slots=True)
class SearcherRun:
    """A searcher with everything its loop needs.

    Attributes:
        profile: the prompt and limits it was trained with; a question may override searches, passages and temperature.
        temperature: sampling temperature if a question names none; 0 is greedy.
        model: the searcher's name at its engine.
        published: its version from the model folder; used if the engine reports no version of its own (vLLM).
    """

    policy: Policy
    retriever: RetrieverClient
    tokenizer: Tokenizer
    profile: SearcherProfile
    temperature: float = 0.0
    model: str = ""
    published: PublishedSearcher = UNPUBLISHED

    @property
    def defaults(self) -> MethodOptions:
        """The options of a question that sets none: the limits of training, and the temperature of the settings."""
        limits = self.profile.limits
        return MethodOptions(limits.top_k, limits.max_searches, self.temperature)

    async def gather(self, question: Question, options: MethodOptions, emit: Emit) -> GatheredDocuments:
        """Run the loop, the initial search included, and pass each step to ``emit``.

        Raises:
            searchrl.errors.ServiceError: the policy or the retriever failed.
        """
        # All other limits stay those of training, whichever options a question sets.
        limits = replace(self.profile.limits, top_k=options.top_k)
        if options.max_searches is not None:
            limits = replace(limits, max_searches=options.max_searches)
        policy, retrieval = CountingPolicy(self.policy), RecordingRetriever(self.retriever)
        initial = None
        if self.profile.initial_top_k:
            query = question.retrieval_query
            # The initial search is part of the prompt that the searcher was trained with; it is no turn, and costs no
            # search.
            (initial,) = await retrieval.search([query], self.profile.initial_top_k, question.filters)
            await emit(DocumentsFound(0, query, tuple(initial)))
        trajectory = await search_loop(
            question,
            policy=policy,
            searcher=retrieval,
            tokenizer=self.tokenizer,
            protocol=self.profile.build_protocol(),
            limits=limits,
            sampling=self.profile.sampling(options.seed, options.temperature),
            # The server keeps the cached keys and values of a rollout under this id (X-Rollout-Id), which therefore has
            # to be unique to one answer.
            rollout_id=request_id() or uuid.uuid4().hex,
            initial=initial,
            observer=emit,
        )
        versions, fingerprint = self._find_versions(trajectory)
        return GatheredDocuments(trajectory, policy, retrieval, limits.top_k, self.model, versions, fingerprint)

    def _find_versions(self, trajectory: Trajectory) -> tuple[tuple[int, ...], str]:
        """Return every policy version that wrote a token, oldest first, and the fingerprint of the folder's version.

        An engine that reports no version counts as version 0; the version of the model folder replaces it.
        """
        # A trajectory has a version per token: retrieved text has NOT_SAMPLED.
        sampled = tuple(sorted(set(trajectory.tokens.versions) - {NOT_SAMPLED}))
        published = self.published
        if sampled in ((0,), (published.version,)) and published.version != NOT_SAMPLED:
            return (published.version,), published.fingerprint
        return sampled, ""


class S3Method(AnsweringMethod):
    """The searcher selects the documents; the generator sees only them, never the searcher's text."""

    name = "s3"

    def __init__(self, run: SearcherRun, answerer: ContextAnswerer) -> None:
        self._run = run
        self._answerer = answerer
        self.defaults = run.defaults

    @classmethod
    def build(cls, parts: MethodParts) -> Self | None:
        run = parts.searcher
        return cls(run, parts.answerer) if run is not None and run.profile.protocol != SEARCH_R1 else None

    async def answer(self, question: Question, options: MethodOptions, emit: Emit) -> Answer:
        gathered = await self._run.gather(question, options, emit)
        documents = gathered.trajectory.documents
        return gathered.complete(await self._answerer.write(question.generator_text, documents, emit, options.reply))


def build_searcher(settings: SearcherSettings, retriever: RetrieverClient) -> tuple[SearcherRun, RemotePolicy]:
    """Build the run of the searcher in a model folder; also return its policy, which has to be closed.

    Raises:
        ConfigurationError: the folder lacks a file.
    """
    profile_file = settings.model_dir / PROFILE_FILE
    if not profile_file.is_file():
        raise ConfigurationError(f"searcher.model_dir: {profile_file} does not exist; name a searcher's model folder")
    profile = SearcherProfile.from_json(profile_file.read_text())
    tokenizer = ModelTokenizer.of_searcher(settings.model_dir)
    key = None if settings.key is None else settings.key.get_secret_value()
    policy = RemotePolicy(settings.base_url, settings.model, key=key, timeout_seconds=settings.timeout_seconds)
    run = SearcherRun(
        policy,
        retriever,
        tokenizer,
        profile,
        settings.temperature,
        model=settings.model,
        published=_read_published(settings.model_dir),
    )
    return run, policy


def _read_published(model_dir: Path) -> PublishedSearcher:
    """Read the version that the trainer wrote into the folder; none for a model from elsewhere."""
    artifact = read_artifact(model_dir)
    if artifact is None or not str(artifact.metadata.get("step", "")).isdigit():
        return UNPUBLISHED
    return PublishedSearcher(int(str(artifact.metadata["step"])), str(artifact.metadata.get("fingerprint", "")))
