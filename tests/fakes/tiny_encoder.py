"""Builds a sentence-transformers folder: a BERT with random weights and a tokenizer of numbered words."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LIMIT = 512  # tokens, as BERT has


def write_tiny_encoder(folder: Path, width: int = 32, layers: int = 2, heads: int = 2, words: int = 200) -> Path:
    """Write the folder and return it. Word ``wN`` is one token; pooling is the mean."""
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    torch.manual_seed(0)
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *(f"w{number}" for number in range(words))])}
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=4 * width, max_position_embeddings=LIMIT,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=LIMIT, **names).save_pretrained(folder)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    listed = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    pooling = {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


def numbered_passages(count: int, words: int, vocabulary: int = 200) -> list[str]:
    """Return different passages of ``words`` / 2 to ``words`` words."""
    drawn = torch.randint(vocabulary, (count, words), generator=torch.Generator().manual_seed(1)).tolist()
    lengths = torch.randint(words // 2, words + 1, (count,), generator=torch.Generator().manual_seed(2)).tolist()
    return [" ".join(f"w{number}" for number in row[:length]) for row, length in zip(drawn, lengths, strict=True)]
