"""Checks that the evaluator lists its runs."""

import asyncio
import os
import sys

from searchrl.clients.evaluator_client import EvaluatorClient
from searchrl.errors import ServiceError
from searchrl.platform.retry import RetryPolicy

# Network policies take effect for a new pod only a moment after it has started.
# The 11 pauses, 0.05 to 3 s and jittered, add up to 9 to 18 s.
PATIENT = RetryPolicy(attempts=12, max_seconds=3)


async def main() -> int:
    client = EvaluatorClient(os.environ["EVALUATOR_TARGET"], key=os.environ.get("CLIENT_KEY"), retries=PATIENT)
    try:
        runs = await client.list_runs()
    finally:
        await client.close()
    sys.stdout.write(f"{len(runs)} runs\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main()))
    except ServiceError as error:
        # sys.exit with a text writes it to stderr and exits with 1: one line in the log of helm test instead of a
        # traceback.
        sys.exit(f"{error.kind}: {error}")
