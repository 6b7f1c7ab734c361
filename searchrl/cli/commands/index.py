"""Command that builds an index from a corpus: the retriever's build command with its usual options."""

import argparse
from pathlib import Path

from searchrl.cli.command_parser import CommandParser, run_module
from searchrl.errors import ConfigurationError
from searchrl.local.index_build import BUILD_MODULE

# Flags without a value.
SWITCHES = ("no_normalize", "skip_bad_rows", "no_activate")


def add_arguments(parser: CommandParser) -> None:
    add = parser.add_argument
    add("--corpus", type=Path, nargs="+", required=True, help="rows of id and contents: .jsonl or .jsonl.gz")
    add("--output", type=Path, required=True, help="index folder; 'searchrl up --index' takes it")
    add("--kind", choices=("bm25", "dense", "hybrid", "faiss"), help="default bm25; faiss: dense, searched by FAISS")
    add("--language", choices=("auto", "english", "cjk"), help="how BM25 splits text into terms; default auto")
    add("--encoder", type=Path, help="sentence-transformers folder, for dense and hybrid")
    add("--query-prefix", help="text before each query; default: what the model's family expects")
    add("--passage-prefix", help="text before each passage; default: what the model's family expects")
    add("--max-tokens", type=int, help="truncate texts after this many tokens")
    add("--device", help="where the encoder runs: cpu, cuda ...")
    add("--faiss-type", help="FAISS factory string, such as Flat, HNSW64 or IVF4096,Flat")
    add("--import-faiss", type=Path, help="use this FAISS file; its rows must be the corpus's, in order")
    add("--nprobe", type=int, help="lists of an IVF index to scan; default: the root of their number")
    add("--ef-search", type=int, help="candidates of a walk over an HNSW graph; default 128")
    add("--no-normalize", action="store_true", help="keep the vectors' lengths (dot product instead of cosine)")
    add("--skip-bad-rows", action="store_true", help="leave unusable rows out and report them")
    add("--no-activate", action="store_true", help="build only; keep serving the old generation")


def run(arguments: argparse.Namespace) -> int:
    """Exit codes are the build command's: 0 built, 1 a temporary failure, 2 unusable input."""
    for path in arguments.corpus:
        if not path.is_file():
            raise ConfigurationError(f"--corpus: there is no file {path}")
    forwarded: list[str] = []
    for name, value in vars(arguments).items():
        flag = f"--{name.replace('_', '-')}"
        if name in SWITCHES:
            forwarded += [flag] if value else []
        elif value is not None:
            forwarded += [flag, *map(str, value if isinstance(value, list) else [value])]
    return run_module(BUILD_MODULE, forwarded)
