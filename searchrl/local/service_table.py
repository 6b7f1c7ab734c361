"""Shows the services on this machine: a table of their states, and commands that call them."""

from collections.abc import Mapping

from rich.table import Table

from searchrl.local.instance import ServiceRecord

COLORS = {"starting": "yellow", "waiting": "yellow", "not ready": "yellow", "ended": "red"}
CURL = "curl -s -H 'content-type: application/json'"


def service_table(services: Mapping[str, ServiceRecord], title: str = "") -> Table:
    """Build the table of state, process and addresses of each service."""
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("service", "state", "pid", "http", "grpc", "restarts"):
        table.add_column(column, no_wrap=True)
    for name, record in services.items():
        state = record.state if record.exit_code is None else f"{record.state} (exit code {record.exit_code})"
        color = "green" if record.is_fine else COLORS.get(record.state, "default")
        table.add_row(
            name,
            f"[{color}]{state}[/]",
            str(record.pid or ""),
            f"http://{record.http}" if record.http else "",
            record.grpc,
            str(record.restarts),
        )
    return table


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
