"""Defines the settings of the retriever; each section is declared beside the component that it configures."""

from pathlib import Path

from pydantic import Field, NonNegativeFloat, PositiveFloat
from pydantic_settings import SettingsConfigDict

from searchrl.platform.settings import ServiceSettings
from services.retriever.encoders.base import EncoderSettings
from services.retriever.generations.build_jobs import BuildSettings
from services.retriever.indexes.manifest import Verification
from services.retriever.indexes.vectors.base import ExactSettings, SearchEffort
from services.retriever.search_service import SearchLimits
from services.retriever.serving.query_batcher import BatchingSettings
from services.retriever.serving.redis_cache import CacheSettings


class RetrieverSettings(ServiceSettings):
    """Settings of the retriever; variables have the prefix RETRIEVER_."""

    model_config = SettingsConfigDict(env_prefix="RETRIEVER_")

    index_dir: Path = Field(description="Folder of index generations that the build command writes.")
    require_index: bool = Field(
        default=False, description="Refuse to start without an index instead of waiting for one."
    )
    verify: Verification = Field(
        default="auto",
        description="Check of files before serving: full; sizes (contents in the background); auto (full up to 1 GiB).",
    )
    # 20 seconds per gigabyte; a higher rate finds damage earlier and takes disk bandwidth from searches.
    check_megabytes_per_second: PositiveFloat = Field(default=50.0, description="Rate of the background check.")
    # Each round reads one file of a few bytes.
    follow_seconds: NonNegativeFloat = Field(default=2.0, description="Interval of looking for a new index; 0: never.")
    limits: SearchLimits = Field(default=SearchLimits(), description="Bounds of one request.")
    batching: BatchingSettings = Field(default=BatchingSettings(), description="Queue and batches.")
    cache: CacheSettings = Field(default=CacheSettings(), description="Caches of rankings.")
    encoder: EncoderSettings = Field(default=EncoderSettings(), description="Model of dense indexes.")
    faiss: SearchEffort = Field(default=SearchEffort(), description="Effort of approximate searches.")
    exact: ExactSettings = Field(default=ExactSettings(), description="Device of exact searches.")
    builds: BuildSettings = Field(default=BuildSettings(), description="Builds over the network.")
