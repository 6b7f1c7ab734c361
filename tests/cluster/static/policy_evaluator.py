"""Decides whether NetworkPolicies let one pod reach another, by the rules of networking.k8s.io/v1."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod as policies see it; ``namespace_labels`` are those of its namespace."""

    name: str
    labels: Mapping[str, str]
    namespace: str

    @property
    def namespace_labels(self) -> Mapping[str, str]:
        return {"kubernetes.io/metadata.name": self.namespace}


def allowed(policies: Sequence[dict[str, Any]], home: str, source: Pod, target: Pod, port: int) -> bool:
    """Whether ``source`` may open a TCP connection to ``port`` of ``target``; ``home`` is the policies' namespace."""
    leaves = _direction(policies, home, source, "Egress", target, port)
    return leaves and _direction(policies, home, target, "Ingress", source, port)


def _direction(
    policies: Sequence[dict[str, Any]], home: str, subject: Pod, direction: str, other: Pod, port: int
) -> bool:
    """Whether one side permits it: policies that select the subject add up; without any, everything is allowed."""
    key, peers = ("egress", "to") if direction == "Egress" else ("ingress", "from")
    chosen = [
        policy["spec"]
        for policy in policies
        if subject.namespace == home
        and direction in policy["spec"]["policyTypes"]
        and matches(policy["spec"]["podSelector"], subject.labels)
    ]
    if not chosen:
        return True
    rules = [rule for spec in chosen for rule in spec.get(key) or []]
    return any(_port(rule, port) and _peer(rule.get(peers), home, other) for rule in rules)


def _port(rule: Mapping[str, Any], port: int) -> bool:
    ports = rule.get("ports")
    return not ports or any(entry.get("protocol", "TCP") == "TCP" and entry.get("port") == port for entry in ports)


def _peer(peers: Sequence[Mapping[str, Any]] | None, home: str, other: Pod) -> bool:
    """Whether a rule's peers include the other pod; a rule without peers admits every pod."""
    if not peers:
        return True
    for peer in peers:
        if "ipBlock" in peer:
            continue  # matches addresses outside the cluster, never pods
        if "namespaceSelector" in peer:
            in_namespace = matches(peer["namespaceSelector"], other.namespace_labels)
        else:
            in_namespace = other.namespace == home
        if in_namespace and matches(peer.get("podSelector", {}), other.labels):
            return True
    return False


def matches(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Label selectors; an empty one selects everything."""
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    for expression in selector.get("matchExpressions", []):
        value, values = labels.get(expression["key"]), expression.get("values", [])
        fits = {
            "In": value in values,
            "NotIn": value not in values,
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }[expression["operator"]]
        if not fits:
            return False
    return True
