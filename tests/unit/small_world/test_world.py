"""A small world: its facts, passages and questions follow from its seed and can be answered."""

import hashlib
import json
import subprocess
import sys

import pytest

from searchrl.small_world.names import NAME_PARTS, list_name_parts
from searchrl.small_world.reader import answer_from_passages, parse_fact, parse_question
from searchrl.small_world.relations import RELATIONS, list_relations
from searchrl.small_world.world import ENTITY_COUNTS, HOP_SHARES, QUESTION_KINDS, SmallWorld

SCALE = 0.25  # a quarter of the entities, to save time


def world(seed: str = "0/train/0", **options: bool) -> SmallWorld:
    return SmallWorld("w000", seed, SCALE, **options)


def digest(made: SmallWorld) -> str:
    rows = [passage.contents for passage in made.passages]
    rows += [f"{question.text} {question.golden_answers}" for question in made.questions(50, "train")]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_a_world_is_the_same_in_every_process(hash_seed: str) -> None:
    program = (
        "import hashlib, json\n"
        "from searchrl.small_world.world import SmallWorld\n"
        f"made = SmallWorld('w000', '0/train/0', {SCALE})\n"
        "rows = [passage.contents for passage in made.passages]\n"
        "rows += [f'{question.text} {question.golden_answers}' for question in made.questions(50, 'train')]\n"
        "print(hashlib.sha256(json.dumps(rows).encode()).hexdigest())\n"
    )
    environment = {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(sys.path)}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == digest(world())


def test_another_seed_gives_other_facts() -> None:
    first, second = world("0/train/0"), world("0/test/0")
    shared = set(first.facts.values()) & set(second.facts.values())
    # with 40 to 105 candidates per object, and few entities in both worlds, hardly any fact agrees by chance
    assert len(shared) < 0.02 * len(first.facts)


def test_each_subject_has_each_relation_once_and_never_leads_to_itself() -> None:
    made = world()
    expected = {(name, relation.name) for relation in RELATIONS for name in made.entities[relation.subject]}
    assert set(made.facts) == expected
    assert all(fact.object != fact.subject for fact in made.facts.values())
    assert all(
        fact.object in made.entities[relation.object]
        for relation in RELATIONS
        for fact in (made.facts[name, relation.name] for name in made.entities[relation.subject])
    )


def test_passages_state_every_fact_once_and_have_one_filler_per_entity() -> None:
    made = world()
    stated = [fact for fact in (parse_fact(passage.text) for passage in made.passages) if fact]
    assert sorted(map(repr, stated)) == sorted(map(repr, made.facts.values()))
    entities = sum(len(made.entities[kind]) for kind in QUESTION_KINDS)
    assert len(made.passages) == len(made.facts) + entities
    assert [passage.id for passage in made.passages[:2]] == ["w000-000000", "w000-000001"]
    assert {passage.metadata["world"] for passage in made.passages} == {"w000"}


def test_a_passage_is_titled_with_its_subject() -> None:
    for passage in world().passages:
        fact = parse_fact(passage.text)
        assert passage.title in passage.text
        assert fact is None or fact.subject == passage.title


def test_the_number_of_entities_follows_the_scale() -> None:
    assert {kind: len(names) for kind, names in world().entities.items()} == {
        "film": 75, "person": 105, "company": 40, "city": 40, "region": 10,
    }  # fmt: skip
    tiny = SmallWorld("w001", "0", 0.001)
    assert {len(names) for names in tiny.entities.values()} == {6}


def test_the_gold_passages_alone_answer_each_question() -> None:
    made = world()
    texts = {passage.id: passage.text for passage in made.passages}
    for question in made.questions(150, "train"):
        gold = [texts[id] for id in question.gold_passage_ids]
        assert answer_from_passages(question.text, gold) == question.golden_answers[0]
        assert len(gold) == int(question.metadata["hops"])
        for missing in range(len(gold)):
            assert answer_from_passages(question.text, gold[:missing] + gold[missing + 1 :]) == "unknown"


def test_questions_differ_and_carry_the_filter_of_their_world() -> None:
    questions = world().questions(150, "test")
    asked = [parse_question(question.text) for question in questions]
    assert len(set(asked)) == len(set(question.id for question in questions)) == 150
    assert all(question.filters == {"world": "w000"} for question in questions)
    assert {question.metadata["split"] for question in questions} == {"test"}


def test_fewer_questions_are_the_beginning_of_more() -> None:
    assert world().questions(60, "train")[:20] == world().questions(20, "train")


@pytest.mark.parametrize("count", [20, 60, 150])
def test_hops_are_mixed_as_stated_in_any_run_of_questions(count: int) -> None:
    questions = world().questions(count, "train")
    for hops, share in zip("123", HOP_SHARES, strict=True):
        # each question is of the kind with the largest deficit, so no kind is ever off by one question or more
        assert abs(sum(question.metadata["hops"] == hops for question in questions) - share * count) < 1


def test_too_many_questions_are_refused() -> None:
    with pytest.raises(ValueError, match="too few facts"):
        SmallWorld("w000", "0", 0.001).questions(1000, "train")


def test_reserved_names_occur_in_no_other_world() -> None:
    def names(made: SmallWorld) -> set[str]:
        return {name for kind in QUESTION_KINDS for name in made.entities[kind]}

    reserved = names(SmallWorld("w001", "5/large/0", 1.0, reserved_names=True))
    assert len(reserved) == sum(ENTITY_COUNTS[kind] for kind in QUESTION_KINDS)
    for number in range(20):
        assert not reserved & names(world(f"{number}/train/{number}"))


def test_every_kind_that_can_be_asked_about_has_relations_and_regions_have_none() -> None:
    assert all(list_relations(kind) for kind in QUESTION_KINDS)
    assert list_relations("region") == ()


def test_no_two_name_parts_and_no_relation_word_share_a_stem() -> None:
    stemmer = pytest.importorskip("Stemmer").Stemmer("porter")
    stems = [stemmer.stemWord(part.lower()) for part in list_name_parts() if part != "Province"]
    assert len(stems) == len(set(stems))
    texts = [text for relation in RELATIONS for text in (*relation.nouns, *relation.sentences, *relation.key_words)]
    words = {stemmer.stemWord(word.strip(".").lower()) for text in texts for word in text.split()}
    assert not words & set(stems)


def test_no_part_serves_two_kinds_except_the_first_words_of_companies_and_regions() -> None:
    pools = [part for kind, pair in NAME_PARTS.items() if kind != "region" for pool in pair for part in pool]
    assert len(pools) == len(set(pools))
