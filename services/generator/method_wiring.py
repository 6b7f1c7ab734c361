"""Builds the answering methods that the settings allow."""

from pathlib import Path

from searchrl.agent.profile import PROFILE_FILE, SearcherProfile
from searchrl.clients.remote_policy import RemotePolicy
from searchrl.clients.retriever_client import RetrieverClient
from searchrl.errors import ConfigurationError
from searchrl.platform.artifact_manifest import read_artifact
from searchrl.tokenization.model_tokenizer import ModelTokenizer
from services.generator.engine_wiring import secret
from services.generator.lifecycle import Step
from services.generator.methods.answering_method import AnsweringMethod
from services.generator.methods.direct import DirectMethod
from services.generator.methods.oracle import OracleMethod
from services.generator.methods.rag import RagMethod
from services.generator.methods.random_retriever import RandomRetrieverMethod
from services.generator.methods.s3 import S3Method
from services.generator.methods.search_r1 import SearchR1Method
from services.generator.methods.searcher_run import UNPUBLISHED, PublishedSearcher, SearcherRun
from services.generator.methods.title_heuristic import TitleHeuristicMethod
from services.generator.prompting.context_answerer import ContextAnswerer
from services.generator.settings import GeneratorSettings, Retriever, Searcher


def build_methods(
    settings: GeneratorSettings, answerer: ContextAnswerer, closers: list[Step]
) -> dict[str, AnsweringMethod]:
    """Return the methods by name; without a retriever only ``direct``. What they open is added to ``closers``.

    Raises:
        ConfigurationError: there is a searcher without a retriever, or without its files.
    """
    methods: list[AnsweringMethod] = [DirectMethod(answerer)]
    if settings.retriever is not None:
        retriever = _build_retriever(settings.retriever)
        closers.append(retriever.close)
        top_k = settings.context.top_k
        methods.append(RagMethod(retriever, answerer, top_k))
        if settings.searcher is not None:
            methods.append(_build_searcher_method(settings.searcher, retriever, answerer, closers))
        methods.append(TitleHeuristicMethod(retriever, answerer, top_k))
        methods.append(OracleMethod(retriever, answerer))
        methods.append(RandomRetrieverMethod(retriever, answerer, top_k))
    elif settings.searcher is not None:
        raise ConfigurationError("a searcher needs a retriever: set retriever.target")
    return {method.name: method for method in methods}


def _build_retriever(settings: Retriever) -> RetrieverClient:
    return RetrieverClient(
        settings.target, key=secret(settings.key), timeout_seconds=settings.timeout_seconds, mode=settings.mode
    )


def _build_searcher_method(
    settings: Searcher, retriever: RetrieverClient, answerer: ContextAnswerer, closers: list[Step]
) -> AnsweringMethod:
    profile_file = settings.model_dir / PROFILE_FILE
    if not profile_file.is_file():
        raise ConfigurationError(f"searcher.model_dir: {profile_file} does not exist; name a searcher's model folder")
    profile = SearcherProfile.from_json(profile_file.read_text())
    tokenizer = ModelTokenizer.of_searcher(settings.model_dir)
    policy = RemotePolicy(
        settings.base_url, settings.model, key=secret(settings.key), timeout_seconds=settings.timeout_seconds
    )
    closers.append(policy.close)
    run = SearcherRun(
        policy,
        retriever,
        tokenizer,
        profile,
        settings.temperature,
        model=settings.model,
        published=_read_published(settings.model_dir),
    )
    return SearchR1Method(run) if profile.protocol == "search_r1" else S3Method(run, answerer)


def _read_published(model_dir: Path) -> PublishedSearcher:
    """Read the version that the trainer wrote into the folder; none for a model from elsewhere."""
    artifact = read_artifact(model_dir)
    if artifact is None or not str(artifact.metadata.get("step", "")).isdigit():
        return UNPUBLISHED
    return PublishedSearcher(int(str(artifact.metadata["step"])), str(artifact.metadata.get("fingerprint", "")))
