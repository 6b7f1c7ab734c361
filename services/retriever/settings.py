"""Defines the settings of the retriever."""

from pathlib import Path

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SecretStr,
)
from pydantic_settings import SettingsConfigDict

from searchrl.platform.service_settings import ServiceSettings
from services.retriever.indexes.manifest import Verification


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Limits(_Part):
    """Limits of one request."""

    default_top_k: PositiveInt = Field(default=3, description="Results per query if the request names no number.")
    max_top_k: PositiveInt = Field(default=100, description="Largest number of results per query.")
    max_queries: PositiveInt = Field(default=4096, description="Queries in one request.")
    # Ten results for each of the 4,096 queries: the answer to a request is held in memory at once.
    max_results: PositiveInt = Field(default=40_960, description="Results in one request: queries times top_k.")
    # Longer than the 512 tokens that common encoders read, so that cutting rarely changes a dense ranking.
    max_query_characters: PositiveInt = Field(
        default=4096, description="Longer queries are cut to this number of characters."
    )


class Batching(_Part):
    """The queue of waiting queries, and the batches they are ranked in."""

    max_batch: PositiveInt = Field(default=512, description="Queries ranked together.")
    # Sixteen full batches: a longer queue would only turn refusals into passed deadlines.
    max_waiting: PositiveInt = Field(default=8192, description="Largest number of waiting queries; more are refused.")
    # Added to every search on an idle index; a longer wait collects larger batches.
    wait_milliseconds: NonNegativeFloat = Field(
        default=1.0, description="How long an idle index waits for more queries."
    )
    # A single failed batch may be one bad query; three different ones in a row point to the index or the encoder.
    not_ready_after: PositiveInt = Field(
        default=3, description="Consecutive batches without any ranking that end readiness."
    )


class Cache(_Part):
    """The caches of rankings, in memory and in Redis."""

    # A ranking takes about 400 bytes and 76 per result: 100,000 rankings of three results take 63 MB, so the number of
    # entries is the limit that applies; of 100 results, 256 MiB hold about 33,000, so the size is.
    memory_entries: NonNegativeInt = Field(default=100_000, description="Rankings cached in memory; 0: none.")
    memory_megabytes: NonNegativeInt = Field(default=256, description="Memory of these rankings; 0: none.")
    redis_url: SecretStr | None = Field(default=None, description="Redis shared by replicas; unset: none.")
    # A lookup that waits longer delays its search more; one that waits less misses more often under load.
    redis_timeout_milliseconds: PositiveFloat = Field(default=50.0, description="Longest wait for a lookup.")
    redis_keep_seconds: PositiveInt = Field(default=86_400, description="Lifetime of an entry in Redis.")
    redis_probe_seconds: PositiveFloat = Field(default=1.0, description="Pause between probes of an unavailable Redis.")


class Encoder(_Part):
    """The model of dense and hybrid indexes."""

    folder: Path | None = Field(default=None, description="Folder of the model; unset: its folder at build time.")
    device: str = Field(default="cpu", description="Device that it runs on: cpu, cuda ...")


class Faiss(_Part):
    """How thoroughly approximate indexes are searched."""

    nprobe: PositiveInt | None = Field(default=None, description="Lists of an IVF index to scan; unset: as built.")
    ef_search: PositiveInt | None = Field(default=None, description="Candidates of an HNSW search; unset: as built.")


class Builds(_Part):
    """Index builds asked for over the network."""

    corpus_root: Path | None = Field(default=None, description="Corpora must be under this folder; unset: anywhere.")


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
    follow_seconds: NonNegativeFloat = Field(default=2.0, description="Interval of looking for a new index; 0: never.")
    limits: Limits = Field(default=Limits(), description="Bounds of one request.")
    batching: Batching = Field(default=Batching(), description="Queue and batches.")
    cache: Cache = Field(default=Cache(), description="Caches of rankings.")
    encoder: Encoder = Field(default=Encoder(), description="Model of dense indexes.")
    faiss: Faiss = Field(default=Faiss(), description="Effort of approximate searches.")
    builds: Builds = Field(default=Builds(), description="Builds over the network.")
