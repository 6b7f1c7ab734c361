"""Contexts stored by s3 are scored like a method, and a missing one counts neither as wrong nor as a failure."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from searchrl.clients.generator_client import GeneratorClient
from searchrl.domain.answer import Answer, Usage
from searchrl.domain.passage import Passage
from services.evaluator.baselines.s3_files import StoredContext, import_output_sequences
from services.evaluator.baselines.stored_contexts import STORED_CONTEXT, StoredContextGenerator, export_contexts
from services.evaluator.records.evaluation_run import MethodSpec, RunSpec
from services.evaluator.store.run_store import RunStore
from tests.fakes.scripted_generator import ScriptedGenerator, right


class FirstWords:
    """A generator that answers with the text of the last passage."""

    async def answer_from_context(self, question: str, passages: Sequence[Passage]) -> Answer:
        text = passages[-1].text if passages else ""
        return Answer(text, cut=("1",), left_out=("2", "3"), finish_reason="length", usage=Usage(12, 3))


def contexts(count: int) -> list[StoredContext]:
    return [
        StoredContext(f"Who leads company {n}?", (), (Passage("1", "T", f"Person {n}"), Passage("2", "U", "noise")), "")
        for n in range(count)
    ]


async def test_a_missing_context_is_not_applicable_and_neither_a_failure_nor_wrong(
    make_service, store: RunStore, question_file: Path
) -> None:
    generator = StoredContextGenerator(
        ScriptedGenerator({"s3": right}), cast(GeneratorClient, FirstWords()), contexts(8)
    )
    service = make_service(generator)
    methods = (MethodSpec(STORED_CONTEXT, top_k=1), MethodSpec(STORED_CONTEXT, label="both"), MethodSpec("s3"))
    await service.create_run(RunSpec("r1", str(question_file), methods))
    one, both, s3 = (await service.wait_for_run("r1")).columns
    assert (one.done, one.failed, one.not_applicable) == (8, 0, 2)
    assert one.estimates["accuracy"].mean == 1.0
    assert (one.estimates["cut_answers"].mean, one.estimates["cut_documents"].mean) == (1.0, 3.0)
    assert both.estimates["accuracy"].mean == 0.0
    assert s3.done == 10
    assert store.passages("r1", ["q3#1"]) == {"q3#1": Passage("q3#1", "T", "Person 3")}


async def test_the_exported_contexts_of_a_method_are_read_back_unchanged(
    make_service, store: RunStore, question_file: Path, tmp_path: Path
) -> None:
    service = make_service(ScriptedGenerator({"s3": right}))
    await service.create_run(RunSpec("r1", str(question_file), (MethodSpec("s3"),)))
    await service.wait_for_run("r1")
    assert export_contexts(store, "r1", "s3", tmp_path / "out.json") == 10
    first = import_output_sequences(tmp_path / "out.json")[0]
    assert (first.question, first.golden_answers) == ("Who leads company 0?", ("Person 0",))
    assert [passage.title for passage in first.passages] == ["Title p0a", "Title p0b"]
