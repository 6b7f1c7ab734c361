"""The ids of a prompt are those of transformers, with which models are trained."""

from pathlib import Path

import pytest

from searchrl.tokenization.model_tokenizer import ModelTokenizer
from tests.fakes.model_folders import byte_level_tokenizer, write_model_folder

TEMPLATE = """{%- if tools is defined and tools %}
    {{- tools | tojson }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'note' %}
        {%- continue %}
    {%- endif %}
    {{- '<turn>' + message.role + '\\n' }}
    {{- message.content | tojson if message.role == 'system' else message.content }}
    {{- eos_token + '\\n' }}
{%- endfor %}
  {% if messages | length > 1 %}
several
  {% endif %}
{%- if add_generation_prompt %}
    {{- '<turn>assistant\\n' }}
{%- endif %}
"""
MESSAGES = [
    {"role": "system", "content": 'say "é" <b>&\n'},
    {"role": "note", "content": "left out"},
    {"role": "user", "content": "日本 {{ 1 }} <turn>"},
]


def test_text_and_ids_of_a_conversation_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers")
    special = ("<pad>", "<eos>", "<turn>")
    config = {"eos_token": "<eos>", "pad_token": "<pad>", "tokenizer_class": "PreTrainedTokenizerFast"}
    folder = write_model_folder(tmp_path, byte_level_tokenizer((), special), config, TEMPLATE)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = ModelTokenizer.from_folder(folder)

    text = theirs.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert ours.render_chat_text(MESSAGES) == text
    assert ours.render_chat(MESSAGES) == theirs.encode(text, add_special_tokens=False)
    assert ours.decode(ours.encode(text)) == text.replace("<eos>", "")
