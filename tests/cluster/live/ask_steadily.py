"""Asks one question again and again: ``python ask_steadily.py HOST:PORT QUESTION_ROW`` inside the cluster.

Prints one line of JSON per answer. Reads one line of standard input in a second thread; after it, one more answer ends
the program, so that the last line shows the state after the change under test.
"""

import asyncio
import json
import sys
import time

from searchrl.clients.generator_client import GeneratorClient
from searchrl.domain.question import Question
from searchrl.errors import ServiceError

PAUSE_SECONDS = 0.2  # far below the gap of 10 s between answers that the test allows


async def main(target: str, row: str) -> None:
    content = json.loads(row)
    question = Question(content["id"], content["question"], (), filters=content["filters"])
    over = asyncio.create_task(asyncio.to_thread(sys.stdin.readline))
    async with GeneratorClient(target, timeout_seconds=60) as generator:
        last = False
        while not last:
            last = over.done()
            sys.stdout.write(json.dumps(await ask(generator, question)) + "\n")
            sys.stdout.flush()
            await asyncio.sleep(PAUSE_SECONDS)


async def ask(generator: GeneratorClient, question: Question) -> dict[str, object]:
    answer = {"answer": "", "policy_version": "", "error": ""}
    try:
        async for event in generator.answer(question, "s3", temperature=0.0):
            if event.WhichOneof("event") == "final":
                answer |= {"answer": event.final.answer, "policy_version": event.final.policy_version}
    except ServiceError as error:
        answer["error"] = f"{type(error).__name__}: {error}"
    return {**answer, "time": time.time()}


asyncio.run(main(*sys.argv[1:]))
