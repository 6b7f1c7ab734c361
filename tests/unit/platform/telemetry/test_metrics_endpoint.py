"""The metrics that every service exports about its requests and itself."""

from prometheus_client import CollectorRegistry

from searchrl import __version__
from searchrl.platform.health import Health
from searchrl.platform.telemetry.metrics_endpoint import RequestMetrics, component_of, scrape


def test_both_transports_share_one_instance_per_registry() -> None:
    registry = CollectorRegistry()
    assert RequestMetrics.of(registry, "retriever") is RequestMetrics.of(registry, "retriever")
    assert RequestMetrics.of(CollectorRegistry(), "retriever") is not RequestMetrics.of(registry, "retriever")


def test_the_component_is_the_services_name() -> None:
    assert component_of("searchrl.contracts.v1.Retriever") == "retriever"
    assert component_of("searchrl.PolicyServer") == "policy-server"


def test_readiness_and_version_are_exported() -> None:
    registry, health = CollectorRegistry(), Health()
    RequestMetrics.of(registry, "generator").follow(health)
    assert registry.get_sample_value("searchrl_ready", {"component": "generator"}) == 0
    health.set_ready()
    assert registry.get_sample_value("searchrl_ready", {"component": "generator"}) == 1
    build = {"component": "generator", "version": __version__}
    assert registry.get_sample_value("searchrl_build_info", build) == 1


def test_requests_are_in_flight_while_they_run() -> None:
    registry = CollectorRegistry()
    metrics = RequestMetrics.of(registry, "generator")
    labels = {"component": "generator", "transport": "grpc"}
    with metrics.in_flight("grpc"):
        assert registry.get_sample_value("searchrl_requests_in_flight", labels) == 1
    assert registry.get_sample_value("searchrl_requests_in_flight", labels) == 0


def test_a_scrape_is_text_unless_openmetrics_is_asked_for() -> None:
    registry = CollectorRegistry()
    RequestMetrics.of(registry, "generator").record("http", "/v1/answer", "ok", 0.1)
    content, content_type = scrape(registry, "")
    assert content_type.startswith("text/plain") and not content.endswith(b"# EOF\n")
    content, content_type = scrape(registry, "application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
    assert content_type.startswith("application/openmetrics-text") and content.endswith(b"# EOF\n")
