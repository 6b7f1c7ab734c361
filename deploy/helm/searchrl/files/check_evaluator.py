"""Does the evaluator list its runs?"""

import asyncio
import os
import sys

from searchrl.clients.evaluator_client import EvaluatorClient


async def main() -> int:
    client = EvaluatorClient(os.environ["EVALUATOR_TARGET"], key=os.environ.get("CLIENT_KEY"))
    try:
        runs = await client.list_runs()
    finally:
        await client.close()
    sys.stdout.write(f"{len(runs)} runs\n")
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
