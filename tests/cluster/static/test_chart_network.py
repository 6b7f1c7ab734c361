"""The permitted connections between pods, computed as a complete matrix from the rendered policies."""

import pytest

from tests.cluster.static.chart_rendering import NAMESPACE, PRESETS, RELEASE, TOGGLES, of_kind, render
from tests.cluster.static.policy_evaluator import Pod, allowed, matches

# DNS, HTTPS, Redis, engines, HTTP, Ray's dashboard and gRPC: the ports that policies mention.
PORTS = (53, 443, 6379, 8000, 8080, 8265, 9090)
SERVERS = (
    "retriever",
    "generator",
    "evaluator",
    "trainer",
    "engine-generator",
    "engine-judge",
    "engine-searcher",
    "redis",
)
ALL_ENGINES = (
    "engines.generator.kind=vllm", "engines.generator.model=/data/models/a", "engines.generator.vllm.cpuKvCacheGib=1",
    "engines.judge.kind=vllm", "engines.judge.model=/data/models/b", "engines.judge.vllm.cpuKvCacheGib=1",
    "redis.mode=embedded",
)  # fmt: skip
# Every permitted connection: from, to, ports. All others are forbidden.
EDGES = {
    ("generator", "retriever"): {9090},
    ("generator", "engine-generator"): {8000},
    ("generator", "engine-judge"): {8000},
    ("generator", "engine-searcher"): {8000},
    ("evaluator", "generator"): {9090},
    ("evaluator", "retriever"): {9090},
    ("retriever", "redis"): {6379},
    ("trainer", "trainer"): set(PORTS),
    ("trainer", "retriever"): {8080, 9090},
    ("trainer", "generator"): {8080, 9090},
    ("trainer", "engine-generator"): {8000},
    ("trainer", "engine-judge"): {8000},
    ("trainer", "engine-searcher"): {8000},
    ("job-evaluate", "retriever"): {8080, 9090},
    ("job-evaluate", "generator"): {8080, 9090},
    ("job-evaluate", "evaluator"): {8080, 9090},
    ("job-evaluate", "trainer"): {8080, 8265, 9090},
}


def member(component: str, release: str = RELEASE) -> Pod:
    labels = {
        "app.kubernetes.io/name": "searchrl",
        "app.kubernetes.io/instance": release,
        "app.kubernetes.io/component": component,
    }
    return Pod(component, labels, NAMESPACE)


def reachable(sets: tuple[str, ...], source: Pod, target: Pod, preset: str = "dev-cpu") -> set[int]:
    policies = of_kind(render(preset, *sets), "NetworkPolicy")
    return {port for port in PORTS if allowed(policies, NAMESPACE, source, target, port)}


DNS = {53, 5353}  # every pod may resolve names at any address; a pod that listens on these ports must still admit it


@pytest.mark.parametrize("target", SERVERS)
@pytest.mark.parametrize("source", [*SERVERS, "job-evaluate"])
def test_the_connections_inside_a_release_are_these_and_no_others(source: str, target: str) -> None:
    assert reachable(ALL_ENGINES, member(source), member(target)) == EDGES.get((source, target), set())


@pytest.mark.parametrize("target", SERVERS)
@pytest.mark.parametrize(
    "intruder",
    [
        Pod("in the namespace", {"app": "intruder"}, NAMESPACE),
        Pod("in another namespace", {"app": "intruder"}, "elsewhere"),
        Pod("dressed as the gateway, elsewhere", member("generator").labels, "elsewhere"),
        member("generator", release="another"),
    ],
    ids=lambda pod: pod.name,
)
def test_a_pod_from_outside_reaches_nothing_but_the_generator(intruder: Pod, target: str) -> None:
    policies = of_kind(render("dev-cpu", *ALL_ENGINES), "NetworkPolicy")
    others = of_kind(render("dev-cpu", *ALL_ENGINES, release="another"), "NetworkPolicy")
    open_ports = {port for port in PORTS if allowed([*policies, *others], NAMESPACE, intruder, member(target), port)}
    is_outsider = intruder.labels.get("app.kubernetes.io/instance") != "another"
    assert open_ports == ({8080, 9090} if target == "generator" and is_outsider else set())


@pytest.mark.parametrize("preset", PRESETS)
def test_every_pod_of_a_release_is_under_the_default_deny(preset: str) -> None:
    documents = render(preset)
    policies = of_kind(documents, "NetworkPolicy")
    deny = next(policy["spec"] for policy in policies if policy["metadata"]["name"] == "rel-default-deny")
    assert deny["policyTypes"] == ["Ingress", "Egress"] and "ingress" not in deny
    for kind in ("Deployment", "StatefulSet", "Job"):
        for workload in of_kind(documents, kind):
            assert matches(deny["podSelector"], workload["spec"]["template"]["metadata"]["labels"])
    for pod in of_kind(documents, "Pod"):
        assert matches(deny["podSelector"], pod["metadata"]["labels"])


def test_the_generator_can_be_closed_to_all_but_one_namespace() -> None:
    name = "networkPolicy.generatorFrom[0].namespaceSelector.matchLabels.kubernetes\\.io/metadata\\.name=web"
    browser, other = Pod("web", {}, "web"), Pod("other", {}, "elsewhere")
    assert reachable((name,), browser, member("generator")) == {8080, 9090}
    assert reachable((name,), other, member("generator")) == set()


def test_the_retriever_is_reached_only_by_the_pods_that_are_named() -> None:
    name = "networkPolicy.retrieverFrom[0].podSelector.matchLabels.app=verl"
    assert reachable((name,), Pod("verl", {"app": "verl"}, NAMESPACE), member("retriever")) == {8080, 9090}
    assert reachable((name,), Pod("else", {"app": "else"}, NAMESPACE), member("retriever")) == set()


@pytest.mark.parametrize("toggle", ["monitoring", "scrape annotations"])
def test_prometheus_reaches_the_metrics_only_while_monitoring_is_on(toggle: str) -> None:
    prometheus = Pod("prometheus", {}, "monitoring")
    assert reachable(TOGGLES[toggle], prometheus, member("retriever")) == {8080}
    assert reachable(TOGGLES[toggle], prometheus, member("engine-searcher")) == {8000}
    assert reachable(TOGGLES[toggle], prometheus, member("trainer")) == {8080}
    assert reachable((), prometheus, member("retriever")) == set()


def test_the_ray_operator_reaches_the_head_and_nothing_else() -> None:
    operator = Pod("operator", {}, "kuberay-system")
    assert reachable((), operator, member("trainer")) == {8265}
    assert reachable((), operator, member("retriever")) == set()


def test_only_jobs_reach_the_identity_service_of_the_cloud_if_it_is_named() -> None:
    addresses = ["169.254.170.23/32", "169.254.169.254/32"]
    named = tuple(f"networkPolicy.identityAddresses[{row}]={address}" for row, address in enumerate(addresses))
    for sets, expected in ((named, {"rel-jobs": addresses}), ((), {})):
        found: dict[str, list[str]] = {}
        for policy in of_kind(render("dev-cpu", *sets), "NetworkPolicy"):
            for rule in policy["spec"].get("egress") or []:
                blocks = [peer["ipBlock"]["cidr"] for peer in rule.get("to", []) if "ipBlock" in peer]
                if blocks:
                    assert [port["port"] for port in rule["ports"]] == [80, 988]
                    found[policy["metadata"]["name"]] = blocks
        assert found == expected


@pytest.mark.parametrize(
    ("sets", "source", "ports"),
    [
        (TOGGLES["generator by URL"], "generator", {8000}),
        (TOGGLES["judge of its own"], "generator", {443}),
        (TOGGLES["redis external"], "retriever", {6379}),
        (TOGGLES["fetch"], "job-fetch", {443}),
        ((), "generator", set()),
        ((), "job-fetch", set()),
        ((), "retriever", set()),
    ],
)
def test_pods_leave_the_cluster_only_by_the_ports_they_need(
    sets: tuple[str, ...], source: str, ports: set[int]
) -> None:
    outside = Pod("an address outside", {}, "outside")
    assert reachable(sets, member(source), outside) - DNS == ports
