"""A scripted generator behind the generator's gRPC contract; run as a process, it prints its port."""

import asyncio
import os
import sys
from pathlib import Path

import grpc

from searchrl.contracts.v1 import generator_pb2 as pb
from searchrl.contracts.v1.generator_pb2_grpc import GeneratorServicer, add_GeneratorServicer_to_server
from searchrl.domain.answer import Provenance
from searchrl.domain.passage import Passage, SearchResult
from searchrl.wire.record_codec import passage_to_wire, provenance_to_wire, result_to_wire

METHODS = ("direct", "rag", "s3", "oracle", "random_retriever")


class FakeGenerator(GeneratorServicer):
    """Answers correctly if the method finds all gold passages of the question; an answer takes ``seconds``.

    Environment variables: ``ANSWER_LOG`` names a file to which each answer adds a line; after ``SWAP_AFTER`` answers
    the index generation changes from g1 to g2.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.answers = 0
        self.model = "fake-reader"
        self.index_generation = "g1"
        self.swap_after = int(os.environ.get("SWAP_AFTER", "0"))
        self.log = Path(os.environ["ANSWER_LOG"]) if "ANSWER_LOG" in os.environ else None

    def _provenance(self, request: pb.AnswerRequest) -> Provenance:
        searches = request.method != "direct"
        return Provenance(
            generator_model=self.model,
            searcher_model="fake-searcher" if request.method == "s3" else "",
            searcher_version="v3" if request.method == "s3" else "",
            index_generations=(self._generation(),) if searches else (),
            top_k=(request.top_k or 3) if searches else 0,
            template_hash="fake-template",
            max_context_tokens=6000,
        )

    async def Answer(self, request: pb.AnswerRequest, context: grpc.aio.ServicerContext | None):
        await asyncio.sleep(self.seconds)
        self.answers += 1
        if self.log is not None:
            with self.log.open("a") as log:
                log.write(f"{request.method} {request.question.id}\n")
        if request.question.metadata.get("refuse"):
            assert context is not None
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "this question is refused")
        question = request.question
        hops = int(question.metadata.get("hops", "1"))
        searches = {"s3": hops, "rag": 1, "random_retriever": 1}.get(request.method, 0)
        gold = [Passage(name, f"Title {name}", f"Text of {name}.") for name in question.gold_passage_ids]
        noise = Passage("noise", "Noise", "Nothing of use.")
        for turn in range(searches):
            query = question.text if turn == 0 else f"{question.text} step {turn}"
            found = [noise] if request.method == "random_retriever" else [*gold[turn : turn + 1], noise]
            yield pb.AnswerEvent(query=pb.QueryStep(turn=turn, queries=[query]))
            results = [result_to_wire(SearchResult(entry, 1.0, rank)) for rank, entry in enumerate(found, start=1)]
            yield pb.AnswerEvent(documents=pb.DocumentsStep(turn=turn, query=query, results=results))
            if request.method == "s3":
                yield pb.AnswerEvent(selection=pb.SelectionStep(turn=turn, passage_ids=[found[0].id]))
        given = {"direct": [], "rag": [*gold[:1], noise], "s3": gold[:hops], "oracle": gold}.get(
            request.method, [noise]
        )
        knows = {item.id for item in given} >= set(question.gold_passage_ids[:hops]) and given
        yield pb.AnswerEvent(
            final=pb.FinalStep(
                answer=question.golden_answers[0] if knows and question.golden_answers else "unknown",
                documents=map(passage_to_wire, given),
                searches=searches,
                context_tokens=20 * len(given),
                seconds=0.01 + 0.02 * searches,
                stop_reason="completed",
                policy_version="v3",
                provenance=provenance_to_wire(self._provenance(request)),
            )
        )

    def _generation(self) -> str:
        return "g2" if 0 < self.swap_after < self.answers else self.index_generation

    async def AnswerFromContext(self, request: pb.AnswerFromContextRequest, context: object):
        made = Provenance(generator_model=self.model)
        return pb.AnswerFromContextResponse(answer="unknown", model=self.model, provenance=provenance_to_wire(made))

    async def Judge(self, request: pb.JudgeRequest, context: object):
        correct = request.answer in request.golden_answers
        return pb.JudgeResponse(
            correct=correct, decided_by="span" if correct else "judge", judge_version="fake-judge-1"
        )

    async def ListMethods(self, request: pb.ListMethodsRequest, context: object):
        return pb.ListMethodsResponse(methods=METHODS)


async def start(seconds: float = 0.0, port: int = 0) -> tuple[grpc.aio.Server, int]:
    """Start a server; return it and its port."""
    server = grpc.aio.server()
    add_GeneratorServicer_to_server(FakeGenerator(seconds), server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    return server, port


async def main() -> None:
    seconds, port, *_ = [*sys.argv[1:], "0", "0"]
    server, port = await start(float(seconds), int(port))
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
