"""``POST /retrieve`` exactly as the clients of Search-R1, s3 and verl call it."""

import httpx
import pytest

from tests.integration.retriever.conftest import RetrieverProcess

QUERIES = ["How many career sacks did Jared Allen have?", "What position does Von Miller play?"]


@pytest.fixture
def url(sample_retriever: RetrieverProcess) -> str:
    return f"{sample_retriever.http}/retrieve"


def test_with_scores_each_row_is_a_document_and_a_score(url: str, http: httpx.Client) -> None:
    answer = http.post(url, json={"queries": QUERIES, "topk": 3, "return_scores": True}).json()
    assert list(answer) == ["result"]
    assert [len(rows) for rows in answer["result"]] == [3, 3]
    first = answer["result"][0][0]
    assert set(first) == {"document", "score"}
    assert set(first["document"]) == {"id", "contents"}
    assert first["document"]["id"] == "0"
    assert first["document"]["contents"].startswith('"Super Bowl 50"\n')
    scores = [row["score"] for row in answer["result"][0]]
    assert scores == sorted(scores, reverse=True)


def test_the_formatting_of_search_r1s_client_works_on_the_answer(url: str, http: httpx.Client) -> None:
    rows = http.post(url, json={"queries": QUERIES, "topk": 2, "return_scores": True}).json()["result"][0]
    lines = []
    for position, row in enumerate(rows):
        title, *rest = row["document"]["contents"].split("\n")
        lines.append(f"Doc {position + 1}(Title: {title}) {' '.join(rest)}")
    assert lines[0].startswith('Doc 1(Title: "Super Bowl 50") The Panthers defense')


@pytest.mark.parametrize("count", [1, 2, 3])
def test_without_scores_each_row_is_the_document_for_any_number_of_queries(
    url: str, http: httpx.Client, count: int
) -> None:
    queries = (QUERIES * 2)[:count]
    plain = http.post(url, json={"queries": queries, "topk": 2, "return_scores": False}).json()["result"]
    scored = http.post(url, json={"queries": queries, "topk": 2, "return_scores": True}).json()["result"]
    assert plain == [[row["document"] for row in rows] for rows in scored]
    assert len(plain) == count


@pytest.mark.parametrize("topk", [{}, {"topk": None}, {"topk": 0}, {"topk": -3}])
def test_without_topk_the_servers_default_holds_and_scores_are_off(
    url: str, http: httpx.Client, topk: dict[str, object]
) -> None:
    answer = http.post(url, json={"queries": QUERIES} | topk).json()
    assert [len(rows) for rows in answer["result"]] == [3, 3]
    assert set(answer["result"][0][0]) == {"id", "contents"}


def test_a_single_string_counts_as_one_query(url: str, http: httpx.Client) -> None:
    answer = http.post(url, json={"queries": QUERIES[0], "topk": 1}).json()
    assert [[row["id"] for row in rows] for rows in answer["result"]] == [["0"]]


def test_an_empty_query_has_no_rows_and_does_not_spoil_the_batch(url: str, http: httpx.Client) -> None:
    response = http.post(url, json={"queries": [QUERIES[0], ""], "topk": 1, "return_scores": True})
    assert response.status_code == 200
    answer = response.json()
    assert [len(rows) for rows in answer["result"]] == [1, 0]
    assert answer["errors"] == {"1": "invalid: the query is empty"}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"queries": None},
        {"queries": 7},
        {"queries": QUERIES, "topk": "many"},
        {"queries": QUERIES, "topk": 100_000},
        {"queries": QUERIES, "return_scores": "perhaps"},
    ],
)
def test_bad_input_is_refused_with_a_sentence(url: str, http: httpx.Client, body: dict[str, object]) -> None:
    response = http.post(url, json=body)
    assert response.status_code == 400
    assert response.json()["error"]["message"]


def test_a_query_that_is_no_text_fails_alone(url: str, http: httpx.Client) -> None:
    odd = [QUERIES[0], 7, None, ["nested"], {"query": "x"}, QUERIES[0]]
    answer = http.post(url, json={"queries": odd, "topk": 1}).json()
    assert [len(rows) for rows in answer["result"]] == [1, 0, 0, 0, 0, 1]
    assert answer["errors"] == {str(at): "invalid: the query is not a text" for at in range(1, 5)}


def test_a_lone_surrogate_and_an_overlong_query_are_answered(url: str, http: httpx.Client) -> None:
    body = b'{"queries": ["Jared Allen sacks \\ud83d", "%s"], "topk": 1}' % (b"Jared Allen sacks " * 1000)
    answer = http.post(url, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 200 and "errors" not in answer.json()
    assert [rows[0]["id"] for rows in answer.json()["result"]] == ["0", "0"]


def test_a_body_that_is_no_json_is_refused(url: str, http: httpx.Client) -> None:
    response = http.post(url, content=b"{queries", headers={"content-type": "application/json"})
    assert response.status_code == 400


def test_a_rollout_batch_of_2560_queries_is_answered_in_order(url: str, http: httpx.Client) -> None:
    queries = [f"{QUERIES[number % 2]} {number}" for number in range(2560)]
    answer = http.post(url, json={"queries": queries, "topk": 3, "return_scores": True}).json()["result"]
    assert len(answer) == 2560
    assert {rows[0]["document"]["id"] for rows in answer[0::2]} == {"0"}
