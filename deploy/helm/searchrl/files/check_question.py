"""Checks that a question is answered from end to end, and that the answer contains the expected text."""

import asyncio
import json
import os
import sys

from searchrl.clients.generator_client import GeneratorClient
from searchrl.domain.question import Question
from searchrl.errors import ServiceError
from searchrl.platform.retry import RetryPolicy

TEXT = os.environ["TEST_QUESTION"]
METHOD = os.environ["TEST_METHOD"]
FILTERS = json.loads(os.environ.get("TEST_FILTERS") or "{}")
EXPECT = os.environ.get("TEST_EXPECT", "")

# Network policies take effect for a new pod only a moment after it has started.
# The 11 pauses, 0.05 to 3 s and jittered, add up to 9 to 18 s.
PATIENT = RetryPolicy(attempts=12, max_seconds=3)


async def main() -> int:
    client = GeneratorClient(
        os.environ["GENERATOR_TARGET"], key=os.environ.get("CLIENT_KEY"), timeout_seconds=120, retries=PATIENT
    )
    question = Question(id="helm-test", text=TEXT, golden_answers=(), filters=FILTERS)
    final = None
    try:
        async for event in client.answer(question, METHOD):
            if event.WhichOneof("event") == "final":
                final = event.final
    finally:
        await client.close()
    if final is None:
        sys.stderr.write("the stream ended without an answer\n")
        return 1
    sys.stdout.write(f"{METHOD}: {TEXT} -> {final.answer}\n")
    # The empty text is part of every answer, so without an expectation any answer passes.
    if EXPECT.lower() not in final.answer.lower():
        sys.stderr.write(f"expected '{EXPECT}' in the answer\n")
        return 1
    return 0


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main()))
    except ServiceError as error:
        sys.exit(f"{error.kind}: {error}")
