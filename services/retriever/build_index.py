"""Build an index generation: ``python -m services.retriever.build_index --corpus FILE --output DIR --kind bm25``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import orjson
from tqdm import tqdm

from searchrl.errors import ConfigurationError, ServiceError, unknown_name
from searchrl.platform.processes import exit_on_sigterm, write_termination_message
from searchrl.storage.artifact_manifest import verify_input
from services.retriever.corpora.corpus_reader import CorpusReader
from services.retriever.encoders.base import EncoderOptions
from services.retriever.generations.generation_builder import build_generation
from services.retriever.generations.index_store import IndexStore
from services.retriever.indexes import INDEX_KINDS
from services.retriever.indexes.manifest import BuildPlan, Manifest
from services.retriever.indexes.vectors.base import SearchEffort, VectorPlan
from services.retriever.indexes.vectors.passage_vectors import Progress


def main(argv: Sequence[str] | None = None) -> int:
    """Build, and activate unless ``--no-activate`` is given.

    Exit codes: 0 built, 1 refused for now, 2 unusable input, 143 stopped by SIGTERM.
    """
    try:
        arguments = _parse(argv)
        progress = JsonProgress() if arguments.progress == "json" else BarProgress()
        manifest = _build(arguments, progress)
    # 2 is also argparse's own code, so that all mistakes in the arguments or their files end with the same one.
    except ConfigurationError as error:
        write_termination_message(f"build_index: {error}")
        return 2
    except ServiceError as error:
        write_termination_message(f"build_index: {error}")
        return 1
    sys.stdout.write(f"{manifest.generation}\n")
    return 0


class BarProgress:
    """One bar per phase on standard error."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None

    def __call__(self, phase: str, done: int, total: int) -> None:
        if self._bar is None or self._bar.desc != phase:
            self.close()
            self._bar = tqdm(desc=phase, total=total, unit_scale=True, file=sys.stderr)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class JsonProgress:
    """One JSON object per line on standard error, for programs."""

    def __call__(self, phase: str, done: int, total: int) -> None:
        # Flushed line by line: the retriever passes the progress on while the build runs, and a pipe is buffered.
        sys.stderr.buffer.write(orjson.dumps({"phase": phase, "done": done, "total": total}) + b"\n")
        sys.stderr.buffer.flush()

    def close(self) -> None:
        """Do nothing: no resource is held open."""


def _build(arguments: argparse.Namespace, progress: BarProgress | JsonProgress) -> Manifest:
    store = IndexStore(arguments.output)
    plan = read_plan(arguments)
    for path in plan.corpus:
        verify_input(path)
    if arguments.if_missing and (found := store.find_equal(plan)) is not None:
        sys.stderr.write(f"build_index: {found.generation} has this corpus and these settings; nothing to build\n")
        if arguments.activate and store.current() != found.generation:
            store.activate(found.generation)
        return found
    reader = CorpusReader(plan.corpus, skip_bad_rows=plan.skip_bad_rows)
    call: Progress = progress
    try:
        manifest = build_generation(store, plan, call, reader)
    finally:
        progress.close()
    if reader.bad_count:
        listed = "\n  ".join(map(str, reader.bad_rows))
        sys.stderr.write(f"build_index: skipped {reader.bad_count} unusable rows; the first ones:\n  {listed}\n")
    if (recall := manifest.recall) is not None:
        sys.stderr.write(f"build_index: recall@{recall.at} {recall.recall:.3f} over {recall.queries} sampled queries\n")
    if arguments.activate:
        store.activate(manifest.generation)
    return manifest


def read_plan(arguments: argparse.Namespace) -> BuildPlan:
    """The build that the arguments describe; ``--kind faiss`` is a dense index, by default of FAISS's type ``Flat``."""
    is_faiss = arguments.kind == "faiss"
    faiss_type = arguments.faiss_type or ("Flat" if is_faiss and not arguments.import_faiss else None)
    return BuildPlan(
        corpus=tuple(arguments.corpus),
        kind="dense" if is_faiss else arguments.kind,
        language=arguments.language,
        encoder=arguments.encoder,
        encoder_options=EncoderOptions(
            arguments.query_prefix,
            arguments.passage_prefix,
            not arguments.no_normalize,
            arguments.max_tokens,
            arguments.device,
        ),
        vectors=VectorPlan(
            faiss_type, arguments.import_faiss, SearchEffort(nprobe=arguments.nprobe, ef_search=arguments.ef_search)
        ),
        skip_bad_rows=arguments.skip_bad_rows,
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        # argparse has no public list of its options.
        known = [option for action in parser._actions for option in action.option_strings]
        raise ConfigurationError(unknown_name("flag", unknown[0], known))
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m services.retriever.build_index", description=__doc__, allow_abbrev=False
    )
    add = parser.add_argument
    add("--corpus", type=Path, nargs="+", required=True, help="rows as .jsonl or .jsonl.gz")
    add("--output", type=Path, required=True, help="index folder; the retriever's index_dir")
    add("--kind", choices=(*INDEX_KINDS, "faiss"), default="bm25", help="faiss: dense, searched by FAISS")
    add("--language", choices=("auto", "english", "cjk"), default="auto", help="how BM25 splits text into terms")
    add("--encoder", type=Path, help="sentence-transformers folder, for dense and hybrid")
    add("--query-prefix", help="text before each query; default: what the model's family expects")
    add("--passage-prefix", help="text before each passage; default: what the model's family expects")
    add("--max-tokens", type=_positive, help="truncate texts after this many tokens; default: the model's")
    add("--no-normalize", action="store_true", help="keep the vectors' lengths (dot product instead of cosine)")
    add("--device", default="cpu", help="where the encoder runs: cpu, cuda ...")
    add("--faiss-type", help="FAISS factory string, such as Flat, HNSW64 or IVF4096,Flat")
    add("--import-faiss", type=Path, help="use this FAISS file; its vectors must be in corpus order")
    add("--nprobe", type=_positive, help="lists of an IVF index to scan; default: the square root of their number")
    add("--ef-search", type=_positive, help="candidates of a search in an HNSW graph; default 128")
    add("--skip-bad-rows", action="store_true", help="skip and report unusable rows")
    add("--no-activate", dest="activate", action="store_false", help="build only; keep serving the old generation")
    add("--if-missing", action="store_true", help="reuse an intact generation of the same corpus and settings")
    add("--progress", choices=("bar", "json"), default="bar", help="how to report progress on standard error")
    return parser


if __name__ == "__main__":
    exit_on_sigterm()
    sys.exit(main())
