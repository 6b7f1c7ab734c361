"""Every preset renders with every toggle, in under half a second, into objects that Kubernetes 1.30 to 1.37 accepts."""

import json
import re
import resource
import warnings
from functools import cache

import pytest
from jsonschema.validators import Draft202012Validator
from referencing import Registry, Resource

from tests.cluster.static.chart_rendering import APIS, CASES, CHART, PRESETS, TOGGLES, helm, render, template, values_of

VERSIONS = ("1.30", "1.31", "1.32", "1.33", "1.34", "1.35", "1.36", "1.37")
CUSTOM = ("monitoring.coreos.com/v1", "keda.sh/v1alpha1", "gateway.networking.k8s.io/v1")


@cache
def validator(version: str, kind: str, api_version: str) -> Draft202012Validator:
    """kubernetes-validate's strict check with its schemas read once; it reads megabytes for every object otherwise."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from kubernetes_validate.utils import schema_contents
    group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api_version)
    schema = schema_contents(f"kubernetes-json-schema/v{version}.0-local-strict/{kind.lower()}-{group}.json", version)
    return Draft202012Validator(schema, registry=Resource.from_contents(schema) @ definitions(version))


@cache
def definitions(version: str) -> Registry:
    from kubernetes_validate.utils import schema_contents

    contents = schema_contents(f"kubernetes-json-schema/v{version}.0-local-strict/_definitions.json", version)
    return Resource.from_contents(contents) @ Registry()


@pytest.mark.parametrize(("preset", "toggle"), CASES)
def test_every_preset_renders_with_every_toggle(preset: str, toggle: str) -> None:
    documents = render(preset, *TOGGLES[toggle])
    identities = [(document["kind"], document["metadata"]["name"]) for document in documents]
    assert len(identities) == len(set(identities)), "two objects of one kind and name"


@pytest.mark.parametrize("preset", PRESETS)
def test_lint_finds_nothing_in_a_preset(preset: str) -> None:
    done = helm("lint", "--strict", str(CHART), *values_of(preset))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("version", VERSIONS)
def test_the_api_server_of_each_version_would_accept_everything(version: str) -> None:
    toggles = TOGGLES if version in (VERSIONS[0], VERSIONS[-1]) else {"as it is": (), "DRA": TOGGLES["DRA"]}
    seen: set[str] = set()
    for preset, toggle in CASES:
        if toggle not in toggles or (toggle == "DRA" and version < "1.34"):
            continue  # devices by claim (DRA) need Kubernetes 1.34
        for document in render(preset, *TOGGLES[toggle]):
            text = json.dumps(document, sort_keys=True)
            if document["apiVersion"] not in CUSTOM and text not in seen:
                seen.add(text)
                errors = list(validator(version, document["kind"], document["apiVersion"]).iter_errors(document))
                assert not errors, f"{preset}, {toggle}, {document['metadata']['name']}: {errors[0].message}"


@pytest.mark.parametrize("preset", PRESETS)
def test_a_render_takes_less_than_half_a_second(preset: str) -> None:
    def seconds() -> float:
        """Processor time of one render, so that other load on the machine does not count."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert template(preset).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(5)) < 0.5


@pytest.mark.parametrize("preset", PRESETS)
def test_two_releases_in_one_namespace_share_no_name(preset: str) -> None:
    first, second = (
        {(document["kind"], document["metadata"]["name"]) for document in render(preset, release=release)}
        for release in ("one", "two")
    )
    assert not first & second


@pytest.mark.parametrize(
    ("key", "api", "assignment"),
    [
        ("monitoring.podMonitors.enabled", APIS[0], "monitoring.podMonitors.enabled=true"),
        ("monitoring.rules.enabled", APIS[0], "monitoring.rules.enabled=true"),
        ("generator.autoscaling.kind", APIS[1], "generator.autoscaling.kind=keda"),
        ("gateway.enabled", APIS[2], "gateway.enabled=true"),
    ],
)
def test_a_custom_resource_whose_api_is_absent_stops_the_render(key: str, api: str, assignment: str) -> None:
    more = ("gateway.parentRefs[0].name=g", "storage.accessMode=ReadWriteMany")
    done = template("gpu-single", assignment, *more, apis=())
    assert done.returncode != 0 and key in done.stderr and api in done.stderr
