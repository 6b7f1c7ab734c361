"""Finds the rows in one JSON object: SQuAD's articles, MIRAGE's sets, rows by id, columns, or rows under one key."""

from collections.abc import Iterator, Mapping, Sequence

from searchrl.datasets.row import BadRow, Row, canonical_key, describe
from searchrl.datasets.shapes.base import QUESTION_KEYS

Placed = tuple[str, object]
_LIST_KEYS = ("data", "questions", "rows", "examples", "instances", "items", "samples")

_SPLITS = frozenset({"train", "training", "dev", "validation", "valid", "val", "test"})


def records_of_object(value: Mapping[str, object]) -> list[Placed]:
    """Return (place, row) for every row in the object; an empty place for an object that is itself a row.

    Raises:
        BadRow: no rows are found in it, or it holds several lists, such as one per split.
    """
    keys = {canonical_key(str(key)): key for key in value}
    question = next((value[keys[key]] for key in QUESTION_KEYS if key in keys), None)
    if isinstance(question, str) or "rewardmodel" in keys or "prompt" in keys or isinstance(value.get("text"), str):
        return [("", value)]
    if isinstance(question, Mapping) and "stem" in question:
        return [("", value)]
    if isinstance(question, Mapping | list):
        return list(_rows_of_columns(value, question))
    lists = [key for key, entry in value.items() if _is_list_of_objects(entry)]
    preferred = [key for key in lists if canonical_key(str(key)) in _LIST_KEYS]
    if len(preferred) == 1 or len(lists) == 1:
        (key, *_) = preferred or lists
        return list(_rows_of_list(key, value[key]))
    if lists:
        raise BadRow(f"holds several lists ({', '.join(map(repr, lists))}); keep one of them in a file of its own")
    return list(_rows_by_id(value))


def _is_list_of_objects(entry: object) -> bool:
    return isinstance(entry, list) and bool(entry) and all(isinstance(each, Mapping) for each in entry)


def _rows_of_list(key: str, entries: object) -> Iterator[Placed]:
    assert isinstance(entries, list)
    for number, entry in enumerate(entries, start=1):
        place = f"entry {number} of {key!r}"
        if "paragraphs" in entry:
            yield from _rows_of_article(place, entry)
        elif isinstance(entry.get("row"), Mapping):  # the data set viewer's {"row_idx", "row"}
            yield place, entry["row"]
        else:
            yield place, entry


def _rows_of_article(place: str, article: Mapping[str, object]) -> Iterator[Placed]:
    """Yield the questions of an article of SQuAD: it holds paragraphs, and a paragraph holds its questions."""
    paragraphs = article["paragraphs"]
    for position, paragraph in enumerate(paragraphs if isinstance(paragraphs, Sequence) else (), start=1):
        questions = paragraph.get("qas") if isinstance(paragraph, Mapping) else None
        if not isinstance(questions, list):
            raise BadRow(
                f"{place}, paragraph {position}: needs a list of questions in 'qas', found {describe(questions)}"
            )
        for number, question in enumerate(questions, start=1):
            yield f"{place}, paragraph {position}, question {number}", question


def _rows_by_id(value: Mapping[str, object]) -> Iterator[Placed]:
    """Yield rows by their ids, or sets of rows by their ids (MIRAGE: {"medqa": {"0000": row}})."""
    splits = [name for name in value if canonical_key(str(name)) in _SPLITS]
    if len(splits) > 1:
        raise BadRow(f"holds several splits ({', '.join(map(repr, splits))}); keep one of them in a file of its own")
    for name, entry in value.items():
        if not isinstance(entry, Mapping):
            raise BadRow(f"holds no list of rows and no rows by id: found {describe(entry)} in {name!r}")
        inner = list(entry.values())
        if inner and all(isinstance(each, Mapping) for each in inner) and not _is_row(entry):
            for id, row in entry.items():
                yield f"{id!r} of {name!r}", _add_id(row, f"{name}:{id}", str(name))
        else:
            yield f"{name!r}", _add_id(entry, str(name))


def _is_row(entry: Mapping[str, object]) -> bool:
    return any(canonical_key(str(key)) in QUESTION_KEYS for key in entry)


def _add_id(row: object, id: str, source: str = "") -> object:
    if not isinstance(row, Mapping):
        return row
    has = Row(row)
    added = {} if "id" in has else {"id": id}
    if source and "source" not in has and "datasource" not in has:
        added["source"] = source
    return {**row, **added}


def _rows_of_columns(value: Mapping[str, object], questions: Mapping[str, object] | list[object]) -> Iterator[Placed]:
    """Yield the rows of columns of equal length, as lists or by index (pandas)."""
    indices = list(questions) if isinstance(questions, Mapping) else list(range(len(questions)))
    columns = {
        key: column
        for key, column in value.items()
        if (isinstance(column, Mapping) and set(column) >= set(indices) and isinstance(questions, Mapping))
        or (isinstance(column, list) and isinstance(questions, list) and len(column) == len(indices))
    }
    for number, index in enumerate(indices, start=1):
        yield f"entry {number}", {key: column[index] for key, column in columns.items()}  # pyright: ignore
