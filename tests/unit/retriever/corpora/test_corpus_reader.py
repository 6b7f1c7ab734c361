"""The corpus reader: formats, order, checksums and bad rows."""

import gzip
import hashlib
from pathlib import Path

import pytest

from searchrl.errors import ConfigurationError
from services.retriever.corpora.corpus_reader import CorpusReader


def write(path: Path, *lines: bytes) -> Path:
    content = b"\n".join(lines) + b"\n"
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def row(id: str) -> bytes:
    return f'{{"id": "{id}", "contents": "text of {id}"}}'.encode()


@pytest.mark.parametrize("name", ["c.jsonl", "c.jsonl.gz"])
def test_rows_come_in_order_and_the_checksum_is_the_files(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / name, row("a"), b"", row("b"))
    reader = CorpusReader([file])
    assert [source.row.passage.id for source in reader] == ["a", "b"]
    assert reader.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert reader.bytes_read == reader.total_bytes == file.stat().st_size


def test_several_files_are_one_corpus(tmp_path: Path) -> None:
    files = [write(tmp_path / "1.jsonl", row("a")), write(tmp_path / "2.jsonl.gz", row("b"))]
    assert [source.row.passage.id for source in CorpusReader(files)] == ["a", "b"]


def test_bad_rows_are_named_with_file_and_line(tmp_path: Path) -> None:
    file = write(tmp_path / "c.jsonl", row("a"), b"{bad", row("a"), b'{"id": "x"}')
    with pytest.raises(ConfigurationError) as caught:
        list(CorpusReader([file]))
    message = str(caught.value)
    assert "3 unusable rows" in message
    assert f"{file}:2: not JSON" in message
    assert f"{file}:3: duplicate id 'a'" in message
    assert f"{file}:4: no text" in message
    assert "--skip-bad-rows" in message


def test_only_the_first_ten_bad_rows_are_listed(tmp_path: Path) -> None:
    file = write(tmp_path / "c.jsonl", row("a"), *[b"bad"] * 5000)
    with pytest.raises(ConfigurationError, match="10 unusable rows, perhaps more") as caught:
        list(CorpusReader([file]))
    assert str(caught.value).count("not JSON") == 10


def test_skipped_rows_are_counted_and_recorded(tmp_path: Path) -> None:
    file = write(tmp_path / "c.jsonl", b"bad", row("a"), *[row("a")] * 14, row("b"))
    reader = CorpusReader([file], skip_bad_rows=True)
    assert [source.row.passage.id for source in reader] == ["a", "b"]
    assert reader.bad_count == 15
    assert len(reader.bad_rows) == 10


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "has no usable row"), (b"\n\n", "has no usable row"), (b"\x1f\x8bnot gzip", "cannot read the corpus")],
)
def test_a_corpus_without_rows_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "c.jsonl").write_bytes(content)
    with pytest.raises(ConfigurationError, match=message):
        list(CorpusReader([tmp_path / "c.jsonl"]))


def test_a_cut_off_gzip_file_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "c.jsonl.gz", *[row(str(number)) for number in range(1000)])
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ConfigurationError, match="cannot read the corpus"):
        list(CorpusReader([file]))


def test_a_damaged_gzip_file_is_refused_with_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "c.jsonl.gz"
    # Two members, so that line 1 can be read before the damage. The second one has ten bytes of header, then a
    # block of type 3, which deflate does not have.
    first, second = gzip.compress(row("a") + b"\n"), gzip.compress(row("b") + b"\n")
    file.write_bytes(first + second[:10] + b"\xff" + second[11:])
    with pytest.raises(ConfigurationError, match=rf"cannot read the corpus {file} after line 1: .*invalid block type"):
        list(CorpusReader([file]))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot read the corpus"):
        list(CorpusReader([tmp_path / "nowhere.jsonl"]))
