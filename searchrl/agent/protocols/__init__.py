"""The formats in which families of models search. A new one is a file of its own and a line in ``PROTOCOLS``."""

from searchrl.agent.protocols.base import ProtocolBuilder
from searchrl.agent.protocols.s3 import S3Protocol
from searchrl.agent.protocols.s3_legacy import S3LegacyProtocol
from searchrl.agent.protocols.search_r1 import SearchR1Protocol
from searchrl.agent.protocols.search_r1_legacy import SearchR1LegacyProtocol

PROTOCOLS: dict[str, dict[str, ProtocolBuilder]] = {
    "s3": {"strict": S3Protocol, "legacy": S3LegacyProtocol},
    "search_r1": {"strict": SearchR1Protocol, "legacy": SearchR1LegacyProtocol},
}
"""Protocols by name and mode, the fields ``protocol`` and ``mode`` of ``searcher.json``: "strict" for this project's
rules, "legacy" for those of published checkpoints."""
