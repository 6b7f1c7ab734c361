"""Builds model folders with small real tokenizers."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

TAGS = ("<query>", "</query>", "<important_info>", "</important_info>", "<search_complete>", "</search_complete>")


def byte_level_tokenizer(merges: Sequence[tuple[str, str]] = (), special: Sequence[str] = ()) -> Tokenizer:
    """Build a byte-level BPE (as in GPT-2, Qwen and Llama 3) with one token per byte and per merge."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *("".join(pair) for pair in merges)]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    return tokenizer


def word_suffix_tokenizer(words: Sequence[str], special: Sequence[str] = ()) -> Tokenizer:
    """Build a BPE whose words end in ``</w>`` and that drops white space; each of ``words`` becomes one token."""
    characters = sorted({character for word in words for character in word} | set('[]{}:,."0123456789'))
    vocabulary = {token: number for number, token in enumerate([*characters, *(f"{c}</w>" for c in characters)])}
    merges: dict[tuple[str, str], None] = {}
    for word in words:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        left = parts[0]
        for right in parts[1:]:
            merges[(left, right)] = None
            left += right
            vocabulary.setdefault(left, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges), end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace()])
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in TAGS])
    return tokenizer


def write_model_folder(
    folder: Path,
    tokenizer: Tokenizer,
    tokenizer_config: Mapping[str, object] | None = None,
    chat_template: str | None = None,
    **files: Mapping[str, object],
) -> Path:
    """Write ``tokenizer.json``, ``tokenizer_config.json``, ``chat_template.jinja`` and any ``<name>.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(dict(tokenizer_config or {})))
    if chat_template is not None:
        (folder / "chat_template.jinja").write_text(chat_template)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(dict(content)))
    return folder
