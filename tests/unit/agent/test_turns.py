"""The seeds of a rollout's turns, whose formula resumed runs depend on, and the kinds of their tokens."""

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from searchrl.agent.protocols.s3 import TAG_KINDS
from searchrl.agent.turns import find_spans, label_tokens, turn_seed
from searchrl.domain.trajectory import TokenKind
from searchrl.tokenization.model_tokenizer import ModelTokenizer
from tests.fakes.model_folders import byte_level_tokenizer, word_suffix_tokenizer, write_model_folder
from tests.fakes.scripted_policy import CharacterTokenizer


def spelt(text: str) -> str:
    """The labels as one letter per character: T thought, Q query, S selection, . action."""
    letters = {TokenKind.THINK: "T", TokenKind.QUERY: "Q", TokenKind.SELECTION: "S", TokenKind.ACTION: "."}
    tokenizer = CharacterTokenizer()
    return "".join(letters[TokenKind(label)] for label in label_tokens(tokenizer.encode(text), tokenizer, TAG_KINDS))


def test_tags_belong_to_the_span_they_delimit() -> None:
    assert spelt("<think>a</think><query>b</query>") == "T" * 16 + "Q" * 16
    assert spelt("x<query>b</query>y") == "." + "Q" * 16 + "."
    assert spelt("<important_info>[1]</important_info><search_complete>") == "S" * 36 + "." * 17


def test_an_unclosed_span_runs_to_the_end() -> None:
    assert spelt("a<query>bc") == "." + "Q" * 9


def test_a_span_that_the_environment_opened_starts_at_the_beginning() -> None:
    assert spelt('{"query"}</query>.') == "Q" * 17 + "."


def test_tags_inside_another_span_do_not_open_a_new_one() -> None:
    assert spelt("<think><query>a</query></think>b") == "T" * 31 + "."


def test_a_stray_closing_tag_after_a_span_changes_nothing() -> None:
    assert find_spans("<query>a</query></query>", TAG_KINDS) == [(0, 16, TokenKind.QUERY)]


def test_the_end_of_sequence_token_is_plain_action() -> None:
    tokenizer = CharacterTokenizer()
    ids = [*tokenizer.encode("<query>a</query>"), tokenizer.eos_id]
    assert label_tokens(ids, tokenizer, TAG_KINDS)[-1] == TokenKind.ACTION


def test_a_token_without_text_inside_a_span_belongs_to_it() -> None:
    tokenizer = CharacterTokenizer()
    ids = [*tokenizer.encode("<query>"), tokenizer.eos_id, *tokenizer.encode("a</query>")]
    assert set(label_tokens(ids, tokenizer, TAG_KINDS)) == {TokenKind.QUERY}


def test_a_token_that_overlaps_a_tag_belongs_to_it_in_a_byte_level_vocabulary(tmp_path: Path) -> None:
    built = byte_level_tokenizer([("x", "<"), ("x<", "q")])
    tokenizer = ModelTokenizer.from_folder(write_model_folder(tmp_path, built))
    ids = [*tokenizer.encode("a"), built.token_to_id("x<q"), *tokenizer.encode("uery>é</query>")]
    assert tokenizer.decode(ids) == "ax<query>é</query>"
    labels = label_tokens(ids, tokenizer, TAG_KINDS)
    assert labels[0] == TokenKind.ACTION
    assert set(labels[1:]) == {TokenKind.QUERY}


def test_tags_that_are_tokens_of_their_own_are_found_in_a_word_vocabulary(tmp_path: Path) -> None:
    built = word_suffix_tokenizer(["False", "Amber", "query"])
    tokenizer = ModelTokenizer.from_folder(write_model_folder(tmp_path, built))
    ids = tokenizer.encode("<search_complete>False</search_complete><query>Amber</query>")
    assert label_tokens(ids, tokenizer, TAG_KINDS) == [TokenKind.ACTION] * 3 + [TokenKind.QUERY] * 3


@settings(deadline=None)
@given(st.lists(st.sampled_from(["<think>", "</think>", "<query>", "</query>", "<", "/", "a", "é", "\0"]), max_size=30))
def test_there_is_one_label_per_token_whatever_the_text(pieces: list[str]) -> None:
    text = "".join(pieces)
    assert len(spelt(text)) == len(text)


def test_labeling_is_linear_in_the_number_of_tokens() -> None:
    text = "<query>a</query>" * 4000
    assert spelt(text) == "Q" * len(text)


def test_a_rollout_without_a_seed_has_none_for_its_turns() -> None:
    assert turn_seed(None, 0) is None


def test_the_formula_is_fixed_because_resumed_runs_depend_on_it() -> None:
    assert turn_seed(0, 0) == 2598789274482403935
    assert turn_seed(0, 1) == 7402227970980107795
    assert turn_seed(12345, 2, attempt=1) == turn_seed(12345, 2, 1)


def test_seeds_differ_between_neighboring_rollouts_turns_and_attempts() -> None:
    seeds = {turn_seed(seed, turn, attempt) for seed in range(50) for turn in range(10) for attempt in range(4)}
    assert len(seeds) == 2000


def test_seeds_fit_a_signed_64_bit_integer() -> None:
    seeds = [turn_seed(seed, turn) or 0 for seed in (-1, 0, 2**63, 2**70) for turn in range(100)]
    assert all(0 <= seed < 2**63 for seed in seeds)
