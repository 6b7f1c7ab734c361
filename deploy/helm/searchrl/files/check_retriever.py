"""Checks that the retriever answers over gRPC, and that the same query gets the same answer again (from the cache)."""

import asyncio
import os
import sys

from searchrl.clients.retriever_client import RetrieverClient
from searchrl.errors import ServiceError
from searchrl.platform.retry import RetryPolicy

QUERY = os.environ.get("TEST_QUESTION") or "where is it"

# Network policies take effect for a new pod only a moment after it has started.
# The 11 pauses, 0.05 to 3 s and jittered, add up to 9 to 18 s.
PATIENT = RetryPolicy(attempts=12, max_seconds=3)


async def main() -> int:
    client = RetrieverClient(
        os.environ["RETRIEVER_TARGET"], key=os.environ.get("CLIENT_KEY"), timeout_seconds=60, retries=PATIENT
    )
    try:
        indexes = await client.list_indexes()
        sys.stdout.write(f"indexes: {indexes}\n")
        first = await client.search([QUERY], 3, {})
        second = await client.search([QUERY], 3, {})
    finally:
        await client.close()
    # Equal in ids, texts, scores and ranks: the cache must return the computed ranking.
    if first != second:
        sys.stderr.write("the cached answer differs from the first one\n")
        return 1
    sys.stdout.write(f"{len(first[0])} passages, twice the same\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main()))
    except ServiceError as error:
        sys.exit(f"{error.kind}: {error}")
