"""Training uses exactly the sampled tokens: no retokenization, no re-rendering, no lost boundary token."""

import random
from pathlib import Path

import pytest

from searchrl.agent.protocols.s3 import S3Protocol
from searchrl.agent.search_loop import search_loop
from searchrl.agent.types import Limits, Sampling
from searchrl.domain.passage import Passage
from searchrl.domain.question import Question
from searchrl.domain.trajectory import NOT_SAMPLED, TokenKind, Trajectory
from searchrl.tokenization.model_tokenizer import ModelTokenizer
from tests.fakes.in_memory_searcher import InMemorySearcher
from tests.fakes.model_folders import byte_level_tokenizer, write_model_folder
from tests.fakes.scripted_policy import ScriptedPolicy

CHATML = """{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
HEADERS = """{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>

{{ message.content }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>

{% endif %}"""
FORGETS_THOUGHTS = """{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content.split('</think>')[-1] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
HEADER_TOKENS = ("<|begin|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
ASK = '<search_complete>False</search_complete><query>{"query": "hello"}</query>'
DONE = "<important_info>[1]</important_info><search_complete>True</search_complete>"


@pytest.fixture
def tokenizer(tmp_path: Path) -> ModelTokenizer:
    merges = [("h", "e"), ("l", "l"), ("ll", "o"), ("he", "llo")]
    built = byte_level_tokenizer(merges, CHATML_TOKENS)
    return ModelTokenizer.from_folder(write_model_folder(tmp_path, built, {"eos_token": "<|im_end|>"}, CHATML))


def drifting(tokenizer: ModelTokenizer, text: str) -> list[int]:
    """The ids of a text with every "hello" as two tokens, which a sampler may well produce."""
    (hello,), (he,), (llo,) = (tokenizer.encode(word) for word in ("hello", "he", "llo"))
    return [part for token in tokenizer.encode(text) for part in ((he, llo) if token == hello else (token,))]


async def roll_out(tokenizer: ModelTokenizer, turns: list[list[int]]) -> tuple[Trajectory, ScriptedPolicy]:
    """Run the search loop with turns given as sampled token ids."""
    policy = ScriptedPolicy(turns, tokenizer)
    trajectory = await search_loop(
        Question("q", "say hello?"),
        policy=policy,
        searcher=InMemorySearcher([Passage("p1", "Greeting", "hello world")]),
        tokenizer=tokenizer,
        protocol=S3Protocol("{question}"),
        limits=Limits(max_searches=5, top_k=1),
        sampling=Sampling(),
        rollout_id="r",
    )
    return trajectory, policy


def sampled_ids(trajectory: Trajectory) -> list[int]:
    return [token for token, sampled in zip(trajectory.tokens.ids, trajectory.tokens.mask, strict=True) if sampled]


async def test_sampled_ids_survive_four_turns_although_encoding_their_text_gives_others(
    tokenizer: ModelTokenizer,
) -> None:
    ask = drifting(tokenizer, ASK)
    done = [*drifting(tokenizer, f"<think>hello</think>{DONE}"), min(tokenizer.eos_ids)]
    assert tokenizer.encode(tokenizer.decode(ask)) != ask
    trajectory, policy = await roll_out(tokenizer, [ask, ask, ask, done])
    assert sampled_ids(trajectory) == ask + ask + ask + done
    assert list(policy.calls[3].prompt_ids) == trajectory.tokens.ids[: len(policy.calls[3].prompt_ids)]
    assert trajectory.documents[0].id == "p1"


async def test_text_sampled_after_the_stop_tag_is_recorded_but_not_parsed(
    tokenizer: ModelTokenizer,
) -> None:
    overshoot = tokenizer.encode(f"{ASK}<search_complete>True</search_complete>")
    trajectory, _ = await roll_out(tokenizer, [overshoot, tokenizer.encode(DONE)])
    assert trajectory.turns[0].action == "search"
    assert sampled_ids(trajectory)[: len(overshoot)] == overshoot


@pytest.mark.parametrize(
    ("template", "special", "config"),
    [
        (CHATML, CHATML_TOKENS, {"eos_token": "<|im_end|>"}),
        (FORGETS_THOUGHTS, CHATML_TOKENS, {"eos_token": {"content": "<|im_end|>"}}),
        (HEADERS, HEADER_TOKENS, {"eos_token": "<|eot_id|>", "bos_token": "<|begin|>"}),
    ],
    ids=["chatml", "chatml that drops thoughts", "headers"],
)
async def test_the_record_is_the_prompt_then_sampled_and_observed_ids_with_every_boundary_token(
    tmp_path: Path, template: str, special: tuple[str, ...], config: dict[str, object]
) -> None:
    folder = write_model_folder(tmp_path, byte_level_tokenizer((), special), config, template)
    tokenizer = ModelTokenizer.from_folder(folder)
    (eos,) = tokenizer.eos_ids
    turns = [tokenizer.encode(f"<think>a</think>{ASK}"), [*tokenizer.encode(f"<think>b</think>{DONE}"), eos]]
    trajectory, _ = await roll_out(tokenizer, turns)

    if special == CHATML_TOKENS:
        start, end = (tokenizer.encode(token)[0] for token in special)
        prompt = [start, *tokenizer.encode("user\nsay hello?"), end, *tokenizer.encode("\n")]
        prompt += [start, *tokenizer.encode("assistant\n")]
    else:
        begin, start, end, eot = (tokenizer.encode(token)[0] for token in special)
        prompt = [begin, start, *tokenizer.encode("user"), end, *tokenizer.encode("\n\nsay hello?"), eot]
        prompt += [start, *tokenizer.encode("assistant"), end, *tokenizer.encode("\n\n")]
    observation = tokenizer.encode('\n\n<information>Doc 1(Title: "Greeting") hello world\n</information>\n\n')
    assert trajectory.tokens.ids == [*prompt, *turns[0], *observation, *turns[1]]
    assert trajectory.tokens.mask.count(True) == len(turns[0]) + len(turns[1])


async def test_masks_follow_positions_and_not_the_ids_of_observations(tokenizer: ModelTokenizer) -> None:
    trajectory, _ = await roll_out(tokenizer, [tokenizer.encode(ASK), tokenizer.encode(DONE)])
    tokens = trajectory.tokens
    given = {int(TokenKind.PROMPT), int(TokenKind.OBSERVATION)}
    for position, sampled in enumerate(tokens.mask):
        assert sampled == (tokens.kinds[position] not in given)
        assert sampled == (tokens.versions[position] != NOT_SAMPLED)
        assert sampled == (tokens.logprobs[position] != 0.0)
    shuffled = random.Random(0)
    noisy = [
        token if sampled else shuffled.randrange(300) for token, sampled in zip(tokens.ids, tokens.mask, strict=True)
    ]
    assert [i for i, m in zip(noisy, tokens.mask, strict=True) if m] == sampled_ids(trajectory)


async def test_log_probabilities_and_versions_stay_beside_their_tokens(tokenizer: ModelTokenizer) -> None:
    turns = [tokenizer.encode(ASK), tokenizer.encode(DONE)]
    trajectory, _ = await roll_out(tokenizer, turns)
    expected = [-0.5 - 0.25 * (index % 3) for turn in turns for index in range(len(turn))]
    actual = [
        value for value, sampled in zip(trajectory.tokens.logprobs, trajectory.tokens.mask, strict=True) if sampled
    ]
    assert actual == expected
