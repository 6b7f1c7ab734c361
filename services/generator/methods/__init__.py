"""The answering methods, one per file. A new one is a file of its own and a name in ``METHODS``."""

from collections.abc import Mapping

from services.generator.methods.base import AnsweringMethod
from services.generator.methods.direct import DirectMethod
from services.generator.methods.oracle import OracleMethod
from services.generator.methods.rag import RagMethod
from services.generator.methods.random_retriever import RandomRetrieverMethod
from services.generator.methods.s3 import S3Method
from services.generator.methods.search_r1 import SearchR1Method
from services.generator.methods.title_heuristic import TitleHeuristicMethod

METHODS: Mapping[str, type[AnsweringMethod]] = {
    method.name: method
    for method in (
        DirectMethod,
        RagMethod,
        S3Method,
        SearchR1Method,
        TitleHeuristicMethod,
        OracleMethod,
        RandomRetrieverMethod,
    )
}
"""Every method by its name, in the order in which a generator lists those that it serves."""
