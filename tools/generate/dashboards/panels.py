"""Provides the building blocks of dashboards: queries, panels and layout as dictionaries in Grafana's JSON."""

from collections.abc import Sequence
from typing import Any

Json = dict[str, Any]

DATASOURCE = {"type": "prometheus", "uid": "${DS_PROMETHEUS}"}
WIDTH = 24  # columns of Grafana's grid
PICK = 'namespace=~"$namespace",job=~"$job"'  # this project's series; series of other exporters have no such job
PLACE = 'namespace=~"$namespace"'
EXPORTED_PLACE = 'exported_namespace=~"$namespace"'


def query(expr: str, legend: str = "") -> Json:
    """Return one query; ``$pick`` and ``$place`` stand for the label selectors; ``legend`` may use {{label}}."""
    # Not str.format: PromQL has braces of its own.
    filled = expr.replace("$pick", PICK).replace("$place", PLACE)
    return {"expr": filled, "legendFormat": legend or "__auto", "datasource": DATASOURCE}


def of_gpus(metric: str) -> str:
    """Return the DCGM exporter's series for GPUs used in the chosen namespaces.

    Scraped with ``honorLabels``, a series names the pod that uses the GPU in ``namespace`` and ``pod``. Scraped without
    it, those labels name the exporter, and the pod is in ``exported_namespace`` and ``exported_pod``.
    """
    return f'({metric}{{{PLACE},exported_namespace=""}} or {metric}{{{EXPORTED_PLACE}}})'


def instant(expr: str, legend: str = "") -> Json:
    """Return one query of the newest values, for tables."""
    return {**query(expr, legend), "instant": True, "format": "table"}


def graph(
    title: str, unit: str, queries: Sequence[Json], text: str, *, stacked: bool = False, high: float | None = None
) -> Json:
    """Return a panel of lines over time; ``high`` draws a red threshold."""
    custom: Json = {"lineWidth": 1, "fillOpacity": 40 if stacked else 8, "showPoints": "never"}
    if stacked:
        custom["stacking"] = {"mode": "normal", "group": "A"}
    defaults: Json = {"unit": unit, "min": None, "custom": custom}
    if high is not None:
        # Without a style Grafana draws no threshold on a graph.
        custom["thresholdsStyle"] = {"mode": "line"}
        # The first step has no value: it is the color from minus infinity on.
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
    """Return a panel of the newest value; ``steps`` are (color, value from which it applies)."""
    colors = [{"color": color, "value": value} for color, value in steps or [("green", None)]]
    return _panel("stat", title, text, queries) | {
        "fieldConfig": {
            "defaults": {"unit": unit, "thresholds": {"mode": "absolute", "steps": colors}},
            "overrides": [],
        },
        "options": {"colorMode": "value", "graphMode": "area", "reduceOptions": {"calcs": ["lastNotNull"]}},
        "_width": 4,
        "_height": 5,
    }


def table(title: str, queries: Sequence[Json], text: str) -> Json:
    """Return a panel of labels and newest values."""
    return _panel("table", title, text, queries) | {
        "fieldConfig": {"defaults": {"unit": "short"}, "overrides": []},
        "options": {"showHeader": True},
        "transformations": [{"id": "organize", "options": {"excludeByName": {"Time": True}}}],
        "_width": 12,
        "_height": 7,
    }


def heatmap(title: str, unit: str, queries: Sequence[Json], text: str) -> Json:
    """Return a panel of a histogram over time; its query must keep the label ``le``."""
    return _panel("heatmap", title, text, [{**one, "format": "heatmap"} for one in queries]) | {
        "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
        "options": {"calculate": False, "color": {"mode": "scheme", "scheme": "Blues"}, "yAxis": {"unit": unit}},
        "_width": 8,
        "_height": 7,
    }


def quantiles(title: str, metric: str, by: str, labels: str, text: str, unit: str = "s") -> Json:
    """Return a graph of p50, p95 and p99 of a histogram; ``by`` is one more label to group by, or empty."""
    group = f"le,{by}" if by else "le"
    legend = f" {{{{{by}}}}}" if by else ""
    queries = [
        query(
            # Buckets are summed over instances before the quantile is taken, because quantiles cannot be averaged.
            f"histogram_quantile({share}, sum by ({group}) (rate({metric}_bucket{{{labels}}}[$__rate_interval])))",
            name + legend,
        )
        for name, share in (("p50", "0.5"), ("p95", "0.95"), ("p99", "0.99"))
    ]
    return graph(title, unit, queries, text)


def mean(metric: str, labels: str, by: str = "") -> str:
    """Return the mean of a histogram over the interval, as PromQL."""
    group = f" by ({by})" if by else ""
    # Sums first, then the quotient: a mean of the instances' means would give an idle instance the weight of a busy
    # one.
    total = f"sum{group} (rate({metric}_sum{{{labels}}}[$__rate_interval]))"
    return f"{total} / sum{group} (rate({metric}_count{{{labels}}}[$__rate_interval]))"


def rate(metric: str, labels: str, by: str) -> str:
    """Return the sum of a counter's rates, as PromQL."""
    # Grafana sets $__rate_interval to at least four scrape intervals, so that a missed scrape leaves two samples for
    # rate().
    return f"sum by ({by}) (rate({metric}{{{labels}}}[$__rate_interval]))"


def share(part: str, whole: str, metric: str, by: str = "") -> str:
    """Return the share of ``part`` in ``whole`` (selectors) of a counter's increase, as PromQL; 0 without any ``part``.

    A part that never happened has no series, so ``or 0 * whole`` takes its place.
    """
    group = f" by ({by})" if by else ""
    above = f"sum{group} (rate({metric}{{{part}}}[$__rate_interval]))"
    below = f"sum{group} (rate({metric}{{{whole}}}[$__rate_interval]))"
    return f"({above} or 0 * {below}) / {below}"


def dashboard(
    uid: str, title: str, text: str, rows: Sequence[tuple[str, Sequence[Json]]], variables: Sequence[Json] = ()
) -> Json:
    """Return a dashboard: lay out the rows and number the panels."""
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
        # 1: all panels show the cursor at the same time.
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
    """Return a variable that selects values of a label; All also matches series without the label."""
    return {
        "name": name,
        "label": title,
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": f"label_values({metric}, {label})", "refId": name},
        "definition": f"label_values({metric}, {label})",
        # 2: the values are read again when the time range changes. sort 1: alphabetical.
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def _lay_out(panels: list[Json], members: Sequence[Json], top: int) -> int:
    # Panels fill a line from the left; one that does not fit starts the next line, below the tallest panel so far.
    left, lowest = 0, top
    for panel in members:
        width, height = panel.pop("_width"), panel.pop("_height")
        if left + width > WIDTH:
            left, top = 0, lowest
        panels.append({**panel, "gridPos": _place(left, top, width, height)})
        left, lowest = left + width, max(lowest, top + height)
    return lowest


def _panel(kind: str, title: str, text: str, queries: Sequence[Json]) -> Json:
    # Grafana needs a distinct id for each query of a panel; its editor assigns letters, too.
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
