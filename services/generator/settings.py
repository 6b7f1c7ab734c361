"""Joins the generator's settings; each section is declared beside its component."""

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from searchrl.platform.settings import ServiceSettings
from services.generator.answer_service import RequestLimits
from services.generator.engines.settings import ChatEngineSettings
from services.generator.judging.judge import JudgeSettings
from services.generator.methods.base import RetrieverSettings
from services.generator.methods.s3 import SearcherSettings
from services.generator.prompting.context_answerer import ContextSettings


class GeneratorSettings(ServiceSettings):
    """The generator: the frozen language model, the judge, and online answering."""

    model_config = SettingsConfigDict(env_prefix="GENERATOR_")

    engine: ChatEngineSettings = Field(default=ChatEngineSettings(), description="Where generations come from.")
    judge: JudgeSettings = Field(default=JudgeSettings(), description="The judge.")
    context: ContextSettings = Field(default=ContextSettings(), description="What the generator reads and writes.")
    searcher: SearcherSettings | None = Field(default=None, description="The searcher of s3 or search_r1, if any.")
    retriever: RetrieverSettings | None = Field(
        default=None, description="Where passages come from; if absent, only direct is served."
    )
    limits: RequestLimits = Field(default=RequestLimits(), description="Admission and sizes.")
