"""What is a dashboard made of? Plain dictionaries in Grafana's JSON, built row by row."""

from collections.abc import Sequence
from typing import Any

Json = dict[str, Any]

DATASOURCE = {"type": "prometheus", "uid": "${DS_PROMETHEUS}"}
WIDTH = 24
PICK = 'namespace=~"$namespace",job=~"$job"'  # our own series; series of others have no such job
PLACE = 'namespace=~"$namespace"'
EXPORTED_PLACE = 'exported_namespace=~"$namespace"'


def query(expr: str, legend: str = "") -> Json:
    """One query; ``$pick`` and ``$place`` stand for the label selectors; ``legend`` may use {{label}}."""
    filled = expr.replace("$pick", PICK).replace("$place", PLACE)
    return {"expr": filled, "legendFormat": legend or "__auto", "datasource": DATASOURCE}


def of_gpus(metric: str) -> str:
    """Series of the DCGM exporter about the GPUs of the chosen namespaces.

    Scraped with ``honorLabels`` they name the pod that uses the GPU as ``namespace`` and ``pod``; without, those name
    the exporter itself, and the user of the GPU stands in ``exported_namespace`` and ``exported_pod``.
    """
    return f'({metric}{{{PLACE},exported_namespace=""}} or {metric}{{{EXPORTED_PLACE}}})'


def instant(expr: str, legend: str = "") -> Json:
    """One query of the newest values, for tables."""
    return {**query(expr, legend), "instant": True, "format": "table"}


def graph(
    title: str, unit: str, queries: Sequence[Json], text: str, *, stacked: bool = False, high: float | None = None
) -> Json:
    """Lines over time; ``high`` draws a red threshold."""
    custom: Json = {"lineWidth": 1, "fillOpacity": 40 if stacked else 8, "showPoints": "never"}
    if stacked:
        custom["stacking"] = {"mode": "normal", "group": "A"}
    defaults: Json = {"unit": unit, "min": None, "custom": custom}
    if high is not None:
        custom["thresholdsStyle"] = {"mode": "line"}
        steps = [{"color": "green", "value": None}, {"color": "red", "value": high}]
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
    return _panel("timeseries", title, text, queries) | {
        "fieldConfig": {
            "defaults": {key: value for key, value in defaults.items() if value is not None},
            "overrides": [],
        },
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "_width": 8,
        "_height": 7,
    }


def stat(
    title: str, unit: str, queries: Sequence[Json], text: str, steps: Sequence[tuple[str, float | None]] = ()
) -> Json:
    """The newest value, large; ``steps`` are colours from a value on."""
    colours = [{"color": colour, "value": value} for colour, value in steps or [("green", None)]]
    return _panel("stat", title, text, queries) | {
        "fieldConfig": {
            "defaults": {"unit": unit, "thresholds": {"mode": "absolute", "steps": colours}},
            "overrides": [],
        },
        "options": {"colorMode": "value", "graphMode": "area", "reduceOptions": {"calcs": ["lastNotNull"]}},
        "_width": 4,
        "_height": 5,
    }


def table(title: str, queries: Sequence[Json], text: str) -> Json:
    """Labels and newest values."""
    return _panel("table", title, text, queries) | {
        "fieldConfig": {"defaults": {"unit": "short"}, "overrides": []},
        "options": {"showHeader": True},
        "transformations": [{"id": "organize", "options": {"excludeByName": {"Time": True}}}],
        "_width": 12,
        "_height": 7,
    }


def heatmap(title: str, unit: str, queries: Sequence[Json], text: str) -> Json:
    """A histogram over time; its query keeps ``le``."""
    return _panel("heatmap", title, text, [{**one, "format": "heatmap"} for one in queries]) | {
        "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
        "options": {"calculate": False, "color": {"mode": "scheme", "scheme": "Blues"}, "yAxis": {"unit": unit}},
        "_width": 8,
        "_height": 7,
    }


def quantiles(title: str, metric: str, by: str, labels: str, text: str, unit: str = "s") -> Json:
    """p50, p95 and p99 of a histogram; ``by`` is one more label to tell apart, or empty."""
    group = f"le,{by}" if by else "le"
    legend = f" {{{{{by}}}}}" if by else ""
    queries = [
        query(
            f"histogram_quantile({share}, sum by ({group}) (rate({metric}_bucket{{{labels}}}[$__rate_interval])))",
            name + legend,
        )
        for name, share in (("p50", "0.5"), ("p95", "0.95"), ("p99", "0.99"))
    ]
    return graph(title, unit, queries, text)


def mean(metric: str, labels: str, by: str = "") -> str:
    """Mean of a histogram over the interval."""
    group = f" by ({by})" if by else ""
    total = f"sum{group} (rate({metric}_sum{{{labels}}}[$__rate_interval]))"
    return f"{total} / sum{group} (rate({metric}_count{{{labels}}}[$__rate_interval]))"


def rate(metric: str, labels: str, by: str) -> str:
    """Sum of a counter's rates."""
    return f"sum by ({by}) (rate({metric}{{{labels}}}[$__rate_interval]))"


def share(part: str, whole: str, metric: str, by: str = "") -> str:
    """Share of a counter's increase that ``part`` makes of ``whole`` (selectors); 0 where none of it happened."""
    group = f" by ({by})" if by else ""
    above = f"sum{group} (rate({metric}{{{part}}}[$__rate_interval]))"
    below = f"sum{group} (rate({metric}{{{whole}}}[$__rate_interval]))"
    return f"({above} or 0 * {below}) / {below}"


def dashboard(
    uid: str, title: str, text: str, rows: Sequence[tuple[str, Sequence[Json]]], variables: Sequence[Json] = ()
) -> Json:
    """Lay the rows out and number the panels."""
    panels: list[Json] = []
    top = 0
    for name, members in rows:
        panels.append(
            {"type": "row", "title": name, "collapsed": False, "gridPos": _place(0, top, WIDTH, 1), "panels": []}
        )
        top = _lay_out(panels, members, top + 1)
    for number, panel in enumerate(panels, start=1):
        panel["id"] = number
    return {
        "uid": uid,
        "title": title,
        "description": text,
        "tags": ["searchrl"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "links": [
            {"type": "dashboards", "title": "SearchRL", "tags": ["searchrl"], "asDropdown": True, "keepTime": True}
        ],
        "annotations": {"list": []},
        "templating": {"list": [_datasource(), *_place_variables(), *variables]},
        "panels": panels,
    }


def label_variable(name: str, title: str, metric: str, label: str) -> Json:
    """A choice among the values of a label; All is every value, none included."""
    return {
        "name": name,
        "label": title,
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": f"label_values({metric}, {label})", "refId": name},
        "definition": f"label_values({metric}, {label})",
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def _lay_out(panels: list[Json], members: Sequence[Json], top: int) -> int:
    left, lowest = 0, top
    for panel in members:
        width, height = panel.pop("_width"), panel.pop("_height")
        if left + width > WIDTH:
            left, top = 0, lowest
        panels.append({**panel, "gridPos": _place(left, top, width, height)})
        left, lowest = left + width, max(lowest, top + height)
    return lowest


def _panel(kind: str, title: str, text: str, queries: Sequence[Json]) -> Json:
    targets = [{**one, "refId": chr(ord("A") + number)} for number, one in enumerate(queries)]
    return {"type": kind, "title": title, "description": text, "datasource": DATASOURCE, "targets": targets}


def _place(x: int, y: int, width: int, height: int) -> Json:
    return {"x": x, "y": y, "w": width, "h": height}


def _datasource() -> Json:
    return {"name": "DS_PROMETHEUS", "label": "Data source", "type": "datasource", "query": "prometheus", "current": {}}


def _place_variables() -> list[Json]:
    return [
        label_variable("namespace", "Namespace", "searchrl_build_info", "namespace"),
        label_variable("job", "Job", 'searchrl_build_info{namespace=~"$namespace"}', "job"),
    ]
