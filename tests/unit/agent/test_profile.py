"""A searcher's profile: its file, its defaults, its limits, and how a broken file is refused."""

import json

import pytest

from searchrl.agent.profile import SearcherProfile, published_s3_profile, published_search_r1_profile
from searchrl.agent.protocols.s3 import S3Protocol
from searchrl.agent.protocols.search_r1_legacy import SearchR1LegacyProtocol
from searchrl.agent.types import Limits
from searchrl.errors import ConfigurationError


def test_a_profile_survives_its_file() -> None:
    profile = SearcherProfile(
        template="Find {question} ☂ {documents}", limits=Limits(max_selected=5, seconds=2.5), temperature=0
    )
    assert SearcherProfile.from_json(profile.to_json()) == profile


def test_absent_fields_have_their_defaults() -> None:
    assert SearcherProfile.from_json("{}") == SearcherProfile()


def test_names_become_protocols() -> None:
    s3 = SearcherProfile(limits=Limits(max_selected=5)).build_protocol()
    assert isinstance(s3, S3Protocol) and s3.max_selected == 5
    legacy = SearcherProfile("search_r1", "legacy").build_protocol()
    assert isinstance(legacy, SearchR1LegacyProtocol)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"protocol": "s4"}', "unknown search protocol 's4': did you mean 's3'"),
        ('{"protocol": "searchr1"}', "did you mean 'search_r1'"),
        ('{"protocol": "zzz"}', "known: s3, search_r1"),
        ('{"mode": "strickt"}', "did you mean 'strict'"),
        ('{"temprature": 1}', "did you mean 'temperature'"),  # codespell:ignore
        ('{"limits": {"max_serches": 1}}', "did you mean 'max_searches'"),
        ('{"limits": {"max_searches": "3"}}', "max_searches cannot be '3'"),
        ('{"limits": {"max_searches": true}}', "max_searches cannot be True"),
        ('{"limits": {"max_searches": -1}}', "max_searches must be at least 0"),
        ('{"limits": {"top_k": 0}}', "top_k must be at least 1"),
        ('{"limits": 3}', "limits cannot be 3"),
        ('{"template": {}}', "template cannot be"),
        ('{"template": 3}', "template cannot be 3"),
        ("[]", "must be a JSON object"),
        ("{", "not JSON"),
    ],
)
def test_a_broken_profile_is_refused_with_what_to_do(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        SearcherProfile.from_json(text)


def test_whole_numbers_pass_for_fractions() -> None:
    assert SearcherProfile.from_json('{"temperature": 1, "limits": {"seconds": 3}}').limits.seconds == 3


def test_sampling_follows_the_profile_unless_overridden() -> None:
    profile = SearcherProfile(temperature=0.6, top_p=0.95, limits=Limits(max_turn_tokens=26))
    assert profile.sampling(seed=4).temperature == 0.6
    assert profile.sampling().top_p == 0.95
    assert profile.sampling(temperature=0.0).temperature == 0.0
    assert profile.sampling(seed=4).seed == 4
    assert profile.sampling().max_tokens == 26


def test_three_turns_of_s3_are_four_searches() -> None:
    profile = published_s3_profile(max_turns=3)
    assert profile.limits.max_searches == 4
    assert (profile.protocol, profile.mode, profile.temperature) == ("s3", "legacy", 0.6)


def test_four_turns_of_search_r1_are_four_searches() -> None:
    assert published_search_r1_profile(max_turns=4).limits.max_searches == 4


def test_the_file_is_readable_json() -> None:
    assert json.loads(SearcherProfile().to_json())["limits"]["top_k"] == 3
