"""Composes curl and grpcurl commands that call the running services."""

from collections.abc import Mapping

from searchrl.cli.instance import ServiceRecord

CURL = "curl -s -H 'content-type: application/json'"


def call_lines(services: Mapping[str, ServiceRecord], has_keys: bool) -> list[str]:
    """Return one or two commands per running service, ready to be copied into a shell."""
    key = " -H 'authorization: Bearer KEY'" if has_keys else ""
    lines: list[str] = []
    if (retriever := services.get("retriever")) and retriever.http:
        lines.append(f'{CURL}{key} http://{retriever.http}/v1/search -d \'{{"queries": ["WORDS"], "top_k": 3}}\'')
        body = '\'{"queries": ["WORDS"]}\''
        lines.append(_grpcurl(key, body, retriever.grpc, "Retriever/Search"))
    if (generator := services.get("generator")) and generator.http:
        body = '\'{"question": {"text": "QUESTION"}, "method": "rag"}\''
        lines.append(f"{CURL} -N{key} http://{generator.http}/v1/answer -d {body}")
        lines.append(_grpcurl(key, body, generator.grpc, "Generator/Answer"))
    if (evaluator := services.get("evaluator")) and evaluator.http:
        lines.append(f"{CURL}{key} http://{evaluator.http}/v1/runs")
    if (trainer := services.get("trainer")) and trainer.http:
        lines.append(f"{CURL}{key} http://{trainer.http}/v1/status")
    return lines


def _grpcurl(key: str, body: str, target: str, method: str) -> str:
    return f"grpcurl -plaintext{key} -d {body} {target} searchrl.contracts.v1.{method}"
