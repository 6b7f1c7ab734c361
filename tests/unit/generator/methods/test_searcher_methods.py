"""The methods with a trained searcher, s3 and Search-R1: documents, budgets, tokens and provenance."""

from dataclasses import replace

import pytest

from searchrl.agent.profile import SearcherProfile
from searchrl.agent.types import DocumentsFound, DocumentsSelected, Generation, Limits, QueriesIssued
from searchrl.contracts.v1 import generator_pb2 as pb
from searchrl.domain.answer import Answer, TextWritten
from searchrl.domain.question import Question
from searchrl.errors import Unavailable
from searchrl.wire.answer_codec import AnswerEvents, answer_to_wire, step_to_wire
from services.generator.engines.reader import ReaderEngine
from services.generator.methods.base import AnsweringMethod, AnswerOptions, Step
from services.generator.methods.s3 import PublishedSearcher, S3Method, SearcherRun
from services.generator.methods.search_r1 import SearchR1Method
from tests.fakes.generator_parts import PASSAGES, PassageStore, answerer_of
from tests.fakes.scripted_policy import CharacterTokenizer, ScriptedPolicy

QUESTION = Question("q", "What is the birthplace of the director of Amber Falcon?", filters={})
SEARCH = (
    "<important_info>[1]</important_info><search_complete>False</search_complete>"
    '<query>{"query": "Jon Reed birthplace"}</query>'
)
FINISH = "<important_info>[1]</important_info><search_complete>True</search_complete>"
PROFILE = SearcherProfile(template="Find: {question} {documents}", limits=Limits(max_searches=3, top_k=2))


def run_with(
    *turns: str | Generation | Exception, profile: SearcherProfile = PROFILE, store: PassageStore | None = None
) -> tuple[SearcherRun, ScriptedPolicy, PassageStore]:
    tokenizer = CharacterTokenizer()
    policy = ScriptedPolicy(turns, tokenizer, version=12)
    store = store or PassageStore(PASSAGES)
    return SearcherRun(policy, store, tokenizer, profile), policy, store


async def run_method(method: AnsweringMethod, options: AnswerOptions | None = None) -> tuple[list[Step], Answer]:
    steps: list[Step] = []

    async def keep(step: Step) -> None:
        steps.append(step)

    return steps, await method.answer(QUESTION, (options or AnswerOptions()).over(method.defaults), keep)


async def test_s3_gives_the_selected_documents_to_the_generator() -> None:
    run, _, _ = run_with(SEARCH, FINISH)
    steps, final = await run_method(S3Method(run, answerer_of(ReaderEngine())))
    kinds = [type(step) for step in steps if not isinstance(step, TextWritten)]
    assert kinds == [DocumentsFound, DocumentsSelected, QueriesIssued, DocumentsFound, DocumentsSelected]
    selected = [passage.id for step in steps if isinstance(step, DocumentsSelected) for passage in step.passages]
    assert list(final.documents) == selected
    assert final.text == "Port Ellis"
    assert (final.searches, final.stop_reason, final.policy_version) == (1, "completed", "v12")
    assert final.trajectory is not None
    assert final.trajectory.documents == tuple(final.passages[name] for name in final.documents)


async def test_the_record_of_an_s3_answer_has_the_selections_of_its_trajectory() -> None:
    second = SEARCH.replace("[1]", "[]").replace("Jon Reed birthplace", "Port Ellis")
    run, _, _ = run_with(SEARCH, second, FINISH.replace("[1]", "[2]"))
    steps, final = await run_method(S3Method(run, answerer_of(ReaderEngine())))
    events = AnswerEvents()
    for step in steps:
        events.add(step_to_wire(step))
    events.add(pb.AnswerEvent(final=answer_to_wire(final, with_trajectory=False)))
    assert final.trajectory is not None
    blocks = final.trajectory.blocks
    assert [block.selection for block in blocks] == [(1,), (), (2,)]
    found = [tuple(result.passage.id for result in block.results) for block in blocks]
    assert [(step.found, step.selected) for step in events.answer().steps] == [
        (ids, tuple(ids[position - 1] for position in block.selection or ()))
        for ids, block in zip(found, blocks, strict=True)
    ]


async def test_online_s3_is_greedy_unless_the_question_sets_a_temperature() -> None:
    run, policy, _ = run_with(FINISH)
    await run_method(S3Method(run, answerer_of(ReaderEngine())))
    assert policy.calls[0].sampling.temperature == 0
    run, policy, store = run_with(SEARCH, FINISH)
    await run_method(S3Method(run, answerer_of(ReaderEngine())), AnswerOptions(top_k=4, temperature=0.7, seed=5))
    assert policy.calls[0].sampling.temperature == 0.7
    assert policy.calls[0].sampling.seed is not None
    assert [top_k for _, top_k, _ in store.calls] == [3, 4]  # the initial search keeps the profile's


async def test_s3_keeps_to_the_questions_max_searches() -> None:
    run, policy, _ = run_with(SEARCH, SEARCH, SEARCH)
    _, final = await run_method(S3Method(run, answerer_of(ReaderEngine())), AnswerOptions(max_searches=1))
    assert (final.searches, final.stop_reason) == (1, "max_searches")
    assert len(policy.calls) == 2


async def test_all_turns_of_a_question_share_one_rollout_id() -> None:
    run, policy, _ = run_with(SEARCH, FINISH)
    await run_method(S3Method(run, answerer_of(ReaderEngine())))
    first = {call.rollout_id for call in policy.calls}
    run, policy, _ = run_with(FINISH)
    await run_method(S3Method(run, answerer_of(ReaderEngine())))
    assert len(first) == 1
    assert first.isdisjoint({policy.calls[0].rollout_id})


async def test_a_policy_that_fails_is_an_error_and_never_an_answer() -> None:
    run, _, _ = run_with(SEARCH, Unavailable("policy gone"))
    with pytest.raises(Unavailable, match="policy gone"):
        await run_method(S3Method(run, answerer_of(ReaderEngine())))


async def test_a_retriever_that_fails_halfway_is_an_error_and_never_an_answer() -> None:
    class Vanishing(PassageStore):
        async def search(self, queries, top_k, filters):  # type: ignore[no-untyped-def]
            if self.calls:
                raise Unavailable("retriever gone")
            return await super().search(queries, top_k, filters)

    run, _, store = run_with(SEARCH, FINISH, store=Vanishing(PASSAGES))
    with pytest.raises(Unavailable, match="retriever gone"):
        await run_method(S3Method(run, answerer_of(ReaderEngine())))
    assert len(store.calls) == 1


async def test_search_r1_answers_by_itself() -> None:
    profile = SearcherProfile("search_r1", "strict", "Q: {question}", Limits(max_searches=2, top_k=2), initial_top_k=0)
    run, policy, store = run_with(
        "<search>Amber Falcon director</search>", "<answer>Port Ellis</answer>", profile=profile
    )
    steps, final = await run_method(SearchR1Method(run))
    assert (final.text, final.searches, final.stop_reason) == ("Port Ellis", 1, "completed")
    assert steps[-1] == TextWritten("Port Ellis")
    written = len("<search>Amber Falcon director</search><answer>Port Ellis</answer>")
    assert final.usage.searcher_completion_tokens == written
    assert final.usage.searcher_prompt_tokens == sum(len(call.prompt_ids) for call in policy.calls)
    assert (final.usage.prompt_tokens, final.usage.completion_tokens) == (0, 0)  # no other model is called
    assert (final.provenance.generator_model, final.provenance.searcher_version) == ("", "v12")
    assert len(store.calls) == 1
    assert len(policy.calls) == 2


async def test_a_search_r1_rollout_without_an_answer_answers_nothing() -> None:
    profile = SearcherProfile("search_r1", "strict", "Q: {question}", Limits(max_searches=1, top_k=2), initial_top_k=0)
    run, _, _ = run_with("<search>a</search>", "<search>b</search>", profile=profile)
    _, final = await run_method(SearchR1Method(run))
    assert (final.text, final.stop_reason) == ("", "max_searches")


async def test_search_r1_names_the_documents_that_its_token_limit_cut_and_an_answer_that_ended_there() -> None:
    limits = Limits(max_searches=1, top_k=1, max_observation_tokens=250, max_turn_tokens=100)
    profile = SearcherProfile("search_r1", "strict", "Q: {question}", limits, initial_top_k=0)
    store = PassageStore([replace(PASSAGES[0], text=PASSAGES[0].text * 20)])
    run, _, _ = run_with("<search>Amber</search>", "<answer>x</answer>", profile=profile, store=store)
    _, final = await run_method(SearchR1Method(run))
    assert (final.cut, final.finish_reason) == (("film",), "stop")
    endless = Generation((ord("a") + 1,) * 100, (-0.5,) * 100, (12,) * 100, "length")
    run, _, _ = run_with("<search>Amber</search>", endless, profile=profile, store=store)
    _, final = await run_method(SearchR1Method(run))
    assert (final.text, final.stop_reason, final.finish_reason) == ("", "truncated", "length")


async def test_s3_counts_the_tokens_of_its_searcher_separately_from_the_generators() -> None:
    run, policy, _ = run_with(SEARCH, FINISH)
    _, final = await run_method(S3Method(run, answerer_of(ReaderEngine())))
    assert len(policy.calls) == 2
    assert final.usage.searcher_prompt_tokens == sum(len(call.prompt_ids) for call in policy.calls)
    assert final.usage.searcher_completion_tokens == len(SEARCH) + len(FINISH)
    assert 0 < final.usage.prompt_tokens < final.usage.searcher_prompt_tokens


async def test_an_answer_of_s3_names_models_index_and_prompt() -> None:
    run, _, _ = run_with(SEARCH, FINISH)
    answerer = answerer_of(ReaderEngine("reader-2"))
    _, final = await run_method(S3Method(replace(run, model="searcher-7b"), answerer))
    made = final.provenance
    assert (made.generator_model, made.searcher_model, made.searcher_version) == ("reader-2", "searcher-7b", "v12")
    assert (made.index_generations, made.top_k, made.max_context_tokens) == (("g1",), 2, 1000)
    assert made.template_hash


async def test_a_searcher_whose_engine_names_no_version_has_that_of_its_model_folder() -> None:
    tokenizer = CharacterTokenizer()
    policy = ScriptedPolicy([FINISH], tokenizer, version=0)  # what a server without versions counts as
    published = PublishedSearcher(60, "a" * 64)
    run = SearcherRun(policy, PassageStore(PASSAGES), tokenizer, PROFILE, published=published)
    _, final = await run_method(S3Method(run, answerer_of(ReaderEngine())))
    assert final.policy_version == "v60"
    assert final.provenance.searcher_version == "v60:" + "a" * 12


async def test_the_version_that_the_engine_reports_overrides_the_model_folders() -> None:
    run, _, _ = run_with(FINISH)
    _, final = await run_method(
        S3Method(replace(run, published=PublishedSearcher(60, "f")), answerer_of(ReaderEngine()))
    )
    assert (final.policy_version, final.provenance.searcher_version) == ("v12", "v12")


async def test_a_searcher_that_is_replaced_during_an_answer_names_both_versions() -> None:
    run, policy, _ = run_with(SEARCH, FINISH)
    answer = policy.generate

    async def replaced(*arguments: object) -> Generation:
        sampled = await answer(*arguments)  # type: ignore[arg-type]
        return replace(sampled, versions=(10 + len(policy.calls),) * len(sampled.ids))

    policy.generate = replaced  # type: ignore[method-assign]
    _, final = await run_method(S3Method(run, answerer_of(ReaderEngine())))
    assert (final.policy_version, final.provenance.searcher_version) == ("v12", "v11+v12")


async def test_an_index_that_is_swapped_during_an_answer_names_both_generations() -> None:
    store = PassageStore(PASSAGES)
    store.generations = ["g1", "g2"]
    run, _, _ = run_with(SEARCH, FINISH, store=store)
    _, final = await run_method(S3Method(run, answerer_of(ReaderEngine())))
    assert final.provenance.index_generations == ("g1", "g2")
