"""The evaluator calls the generator service through its client."""

from searchrl.clients.generator_client import GeneratorClient
from searchrl.domain.question import Question
from services.evaluator.records.evaluation_run import MethodSpec
from services.evaluator.runs.episode_runner import RemoteGenerator
from tests.fakes.generator_server import start


async def test_answers_verdicts_and_methods_come_over_the_wire() -> None:
    server, port = await start()
    async with GeneratorClient(f"127.0.0.1:{port}") as client:
        generator = RemoteGenerator(client)
        question = Question("q", "Who?", ("Ann",), metadata={"hops": "2"}, gold_passage_ids=("a", "b"))
        record = await generator.answer(question, MethodSpec("s3"))
        assert (record.text, record.documents, record.searches) == ("Ann", ("a", "b"), 2)
        assert (await generator.judge("Who?", "Ann", ["Ann"])).decided_by == "span"
        assert "s3" in await generator.list_methods()
    await server.stop(None)
