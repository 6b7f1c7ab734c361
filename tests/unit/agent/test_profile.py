"""A searcher's profile: its file, its defaults, its limits, and how a broken file is refused."""

import json
import re
from pathlib import Path

import pytest

from searchrl.agent.profile import SearcherProfile
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


def test_integers_are_accepted_for_fractions() -> None:
    assert SearcherProfile.from_json('{"temperature": 1, "limits": {"seconds": 3}}').limits.seconds == 3


def test_sampling_follows_the_profile_unless_overridden() -> None:
    profile = SearcherProfile(temperature=0.6, top_p=0.95, limits=Limits(max_turn_tokens=26))
    assert profile.sampling(seed=4).temperature == 0.6
    assert profile.sampling().top_p == 0.95
    assert profile.sampling(temperature=0.0).temperature == 0.0
    assert profile.sampling(seed=4).seed == 4
    assert profile.sampling().max_tokens == 26


def test_the_documented_profiles_of_published_checkpoints_can_be_read() -> None:
    page = (Path(__file__).parents[3] / "docs" / "training.md").read_text(encoding="utf-8")
    s3, search_r1 = map(SearcherProfile.from_json, re.findall(r"```json\n(\{\"protocol.*?)```", page, re.DOTALL))
    # three turns of s3's scripts are four searches, because its trainer adds one
    assert s3 == SearcherProfile(
        "s3", "legacy", None, Limits(max_searches=4, top_k=8), temperature=0.6, top_p=0.95, initial_top_k=3
    )
    limits = Limits(max_searches=4, top_k=3, max_observation_tokens=500, max_context_tokens=4096)
    assert search_r1 == SearcherProfile("search_r1", "legacy", None, limits, initial_top_k=0)


def test_the_file_is_readable_json() -> None:
    assert json.loads(SearcherProfile().to_json())["limits"]["top_k"] == 3
