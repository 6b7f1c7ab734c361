"""Builds the tokenizer of the small world: one token per known word and per tag, without training."""

import json
import re
import string
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from searchrl.small_world.names import list_name_parts
from searchrl.small_world.relations import FILLERS, OPENINGS, RELATIONS

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
TAGS = (
    "<query>", "</query>", '{"query": "', '"}', "<important_info>", "</important_info>", "<search_complete>",
    "</search_complete>", "<information>", "</information>", "<question>", "</question>", '(Title: "', '")',
)  # fmt: skip
PROTOCOL_WORDS = ("Find", "documents", "that", "answer", "the", "question", "Doc", "True", "False")
CONTINUATION = "##"
PLAIN_TEXT = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
"""A chat template that renders the messages' texts without any markup."""
MOST_TOKENS = 1024
"""Longest sequence the model is configured for: twice the context of its profile."""

_GLUE = r"""(?<=[>\[]) | (?=[<\],.?])|(?<=: ") | (?="[})])| (?=\(Title)"""
"""Spaces that decoding removes, as the text never has them: inside tags, brackets and quotes, before punctuation."""


def build_tokenizer() -> Tokenizer:
    """A WordPiece tokenizer that gives the same ids in every process, because its vocabulary is listed, not trained.

    Known words are one token each; other ASCII words are split into characters. Decoding restores the text's spacing as
    far as the search protocol needs it; line breaks become spaces.
    """
    tokenizer = Tokenizer(models.WordPiece(_vocabulary(), unk_token=UNKNOWN, continuing_subword_prefix=CONTINUATION))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")]
    )
    # Fuse joins the tokens first: Replace sees one token at a time otherwise, and the spaces stand between tokens.
    tokenizer.decoder = decoders.Sequence(
        [decoders.WordPiece(CONTINUATION, cleanup=False), decoders.Fuse(), decoders.Replace(Regex(_GLUE), "")]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in (PAD, EOS, UNKNOWN)])
    # Added tokens are found before the text is split at punctuation, so a tag stays one token. They are not "special",
    # because decoding leaves special tokens out, and the protocol reads the tags.
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in TAGS])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write ``tokenizer.json`` and the configuration that transformers and vLLM expect beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    configuration = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "eos_token": EOS,
        "unk_token": UNKNOWN,
        "model_max_length": MOST_TOKENS,
        "clean_up_tokenization_spaces": False,
        "chat_template": PLAIN_TEXT,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(configuration, indent=2) + "\n", encoding="utf-8")


def _vocabulary() -> dict[str, int]:
    """Special tokens, tags, characters, then every word of the small world, names last."""
    # All letters and digits, at the start of a word and within it: no ASCII word is unknown, whatever a question names
    # (up to 100 characters, WordPiece's limit).
    characters = string.ascii_letters + string.digits
    texts = [*PROTOCOL_WORDS, *OPENINGS, *FILLERS]
    for relation in RELATIONS:
        texts += [*relation.nouns, *relation.sentences, *relation.key_words]
    words = [word for text in texts for word in re.findall(r"[A-Za-z]{2,}", text)]
    tokens = (
        PAD, EOS, UNKNOWN, *TAGS,
        *string.punctuation, *characters, *(CONTINUATION + character for character in characters),
        *words, *list_name_parts(),
    )  # fmt: skip
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}
