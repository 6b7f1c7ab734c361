"""Renders the services on this machine as a table, one row each."""

from collections.abc import Mapping

from rich.table import Table

from searchrl.cli.instance import ServiceRecord

COLORS = {"ready": "green", "starting": "yellow", "waiting": "yellow", "not ready": "yellow", "ended": "red"}


def service_table(services: Mapping[str, ServiceRecord], title: str = "") -> Table:
    """Build the table of state, process and addresses of each service."""
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("service", "state", "pid", "http", "grpc", "restarts"):
        table.add_column(column, no_wrap=True)
    for name, record in services.items():
        state = record.state if record.exit_code is None else f"{record.state} (exit code {record.exit_code})"
        table.add_row(
            name,
            f"[{COLORS.get(record.state, 'default')}]{state}[/]",
            str(record.pid or ""),
            f"http://{record.http}" if record.http else "",
            record.grpc,
            str(record.restarts),
        )
    return table
