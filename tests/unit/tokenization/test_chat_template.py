"""Features that published chat templates rely on, and how untrusted text is tracked through a template."""

from datetime import date
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchrl.domain.guarded_text import GuardedText
from searchrl.errors import ConfigurationError
from searchrl.tokenization.chat_template import ChatTemplate
from searchrl.tokenization.model_tokenizer import ModelTokenizer
from tests.fakes.model_folders import byte_level_tokenizer, write_model_folder

QUESTION = [{"role": "user", "content": "who?"}]
GENERATION = (
    "{% set end = 'E' %}{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}{% set end = 'F' %}"
    "{{ m['content'] + end }}{% endgeneration %}{{ end }}{% else %}[{{ m['content'] }}]{% endif %}{% endfor %}"
)
DATED = "{{ strftime_now('%d %b %Y') }} {{ messages[0]['content'] }}"


def test_the_tag_that_marks_generated_text_prints_what_it_holds_as_transformers_does() -> None:
    messages = [*QUESTION, {"role": "assistant", "content": "me"}]
    assert ChatTemplate(GENERATION, {}).render(messages) == "[who?]meFE"
    utilities = pytest.importorskip("transformers.utils.chat_template_utils")
    theirs, _ = utilities.render_jinja_template([messages], chat_template=GENERATION)
    assert theirs == ["[who?]meFE"]


@pytest.mark.parametrize("name", ["tools", "documents"])
def test_a_template_that_asks_whether_tools_or_documents_are_none_finds_none(name: str) -> None:
    source = "{% if NAME is not none %}You may call{% endif %}{{ messages[0]['content'] }}".replace("NAME", name)
    assert ChatTemplate(source, {}).render(QUESTION) == "who?"


def test_arguments_of_the_template_come_from_the_searchers_profile(tmp_path: Path) -> None:
    source = "{{ messages[0]['content'] }}{% if enable_thinking is defined and not enable_thinking %}<no>{% endif %}"
    folder = write_model_folder(
        tmp_path, byte_level_tokenizer(), {}, source, searcher={"chat_template_kwargs": {"enable_thinking": False}}
    )
    tokenizer = ModelTokenizer.of_searcher(folder)
    assert tokenizer.decode(tokenizer.render_prompt("who?")) == "who?<no>"


@pytest.mark.parametrize(
    ("profile", "said"),
    [
        ({"chat_template_kwargs": {"messages": []}}, "cannot set messages"),
        ({"chat_template_kwargs": [1]}, "must be an object"),
        ({"template_date": "yesterday"}, "must be YYYY-MM-DD"),
    ],
)
def test_settings_that_the_template_cannot_take_are_refused(
    tmp_path: Path, profile: dict[str, object], said: str
) -> None:
    folder = write_model_folder(tmp_path, byte_level_tokenizer(), {}, DATED, searcher=profile)
    with pytest.raises(ConfigurationError, match=said):
        ModelTokenizer.from_folder(folder)


def test_a_template_that_prints_todays_date_needs_a_fixed_one(tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path, byte_level_tokenizer(), {}, DATED)
    with pytest.raises(ConfigurationError, match=r"today's date.*template_date"):
        ModelTokenizer.of_searcher(folder)
    write_model_folder(tmp_path, byte_level_tokenizer(), {}, DATED, searcher={"template_date": "2026-02-03"})
    tokenizer = ModelTokenizer.of_searcher(folder)
    assert tokenizer.decode(tokenizer.render_prompt("who?")) == "03 Feb 2026 who?"


def test_a_template_with_a_date_of_its_own_needs_no_other(tmp_path: Path) -> None:
    source = "{% if not day %}{% set day = strftime_now('%Y') %}{% endif %}{{ day }}{{ messages[0]['content'] }}"
    kwargs = {"chat_template_kwargs": {"day": "Monday"}}
    folder = write_model_folder(tmp_path, byte_level_tokenizer(), {}, source, searcher=kwargs)
    assert ModelTokenizer.of_searcher(folder).render_prompt("x")


def test_a_template_may_print_a_message_twice_or_as_json() -> None:
    template = ChatTemplate("{{ messages[0]['content'] }}|{{ messages[0]['content'] | tojson }}", {}, today=date.min)
    rendered = template.render([{"role": "user", "content": GuardedText.join_parts("a ", outside("b\n"))}])
    assert rendered == 'a b\n|"a b\\n"'
    assert [rendered[start:end] for start, end in rendered.untrusted] == ["b", "b"]


def test_a_template_that_rewrites_messages_is_refused(tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path, byte_level_tokenizer(), {}, "{{ messages[0]['content'][1:] }}")
    with pytest.raises(ConfigurationError, match="prints messages unchanged"):
        ModelTokenizer.of_searcher(folder)


@pytest.mark.parametrize(
    "source",
    [
        "hello",
        "{% for part in messages[0]['content'] %}{{ part.text }}{% endfor %}",
        "{{ messages[0]['content'] | upper }}",
        "{{ messages[0]['content'] | e }}",
        "{{ messages[1:] }}",
    ],
)
def test_a_template_that_leaves_out_or_changes_the_users_text_is_refused(tmp_path: Path, source: str) -> None:
    folder = write_model_folder(tmp_path, byte_level_tokenizer(), {}, source)
    with pytest.raises(ConfigurationError, match="does not print the text of a user message unchanged"):
        ModelTokenizer.of_searcher(folder)


@pytest.mark.parametrize("expression", ["1 + 'a'", "range(10 ** 9)", "1 / 0", "messages[7].content.x", "'%d' % 'a'"])
def test_an_expression_that_fails_is_reported_in_one_sentence(expression: str) -> None:
    with pytest.raises(ConfigurationError, match="the chat template refuses the messages"):
        ChatTemplate(f"{{{{ {expression} }}}}", {}).render([{"role": "user", "content": "x"}])


def outside(text: str) -> GuardedText:
    return GuardedText.from_outside(text)


TRIMMED = ChatTemplate("<{{ messages[0]['content'] | trim }}>", {})


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.text(max_size=8)), max_size=6))
def test_untrusted_ranges_are_found_again_behind_the_template(parts: list[tuple[bool, str]]) -> None:
    parts = [(trusted, text.replace("\ufdd0", "").replace("\ufdd1", "")) for trusted, text in parts]
    content = GuardedText.join_parts(*(text if trusted else outside(text) for trusted, text in parts))
    rendered = TRIMMED.render([{"role": "user", "content": content}])
    assert rendered == f"<{str(content).strip()}>"
    expected = "".join(str(content[start:end]).strip() for start, end in content.untrusted)
    assert "".join(rendered[start:end] for start, end in rendered.untrusted) == expected


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=20), st.text(max_size=20), st.integers(-25, 45), st.integers(-25, 45))
def test_slices_of_a_guarded_text_keep_what_is_untrusted(a: str, b: str, start: int, stop: int) -> None:
    text = GuardedText.join_parts(a, outside(b))
    flags = [False] * len(a) + [True] * len(b)
    part = text[start:stop]
    found = [any(low <= index < high for low, high in part.untrusted) for index in range(len(part))]
    assert found == flags[start:stop]
    assert text.strip() == str(text).strip()
