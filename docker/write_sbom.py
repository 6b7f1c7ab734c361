"""Writes an image's software bill of materials: its Python distributions and Debian packages, in CycloneDX.

Usage: write_sbom.py NAME FILE. Standard library only; runs in the finished root of an image.
"""

import importlib.metadata
import json
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

PYTHON_ROOTS = (Path("/opt/searchrl"), Path("/usr/local/lib"), Path("/usr/lib/python3"))
DPKG_STATUS = Path("/var/lib/dpkg/status")
OS_RELEASE = Path("/etc/os-release")


def python_components(roots: Sequence[Path]) -> Iterator[dict[str, object]]:
    """Yield one component for each distribution below the folders."""
    places = sorted({str(info.parent) for root in roots for info in root.rglob("*.dist-info")})
    for distribution in importlib.metadata.distributions(path=places):
        meta = distribution.metadata
        name, version = meta["Name"].lower().replace("_", "-").replace(".", "-"), distribution.version
        component: dict[str, object] = {
            "type": "library",
            "name": meta["Name"],
            "version": version,
            "purl": f"pkg:pypi/{name}@{version.replace('+', '%2B')}",
            "bom-ref": f"pypi:{name}@{version}:{distribution.locate_file('')}",
        }
        license = meta["License-Expression"]
        if license:
            component["licenses"] = [{"expression": license}]
        elif named := _licence_name(meta["License"], meta.get_all("Classifier") or []):
            component["licenses"] = [{"license": {"name": named}}]
        yield component


def _licence_name(text: str | None, classifiers: list[str]) -> str:
    named = [line.rpartition(" :: ")[2] for line in classifiers if line.startswith("License :: OSI Approved :: ")]
    if named:
        return named[0]
    # Some distributions put the license's complete text here: only a first line that is short enough is a name.
    first = (text or "").strip().partition("\n")[0]
    return first if len(first) <= 80 and first != "UNKNOWN" else ""


def system_components(status: Path, distribution: str) -> Iterator[dict[str, object]]:
    """Yield one component for each installed Debian package."""
    if not status.exists():
        return
    for paragraph in status.read_text(encoding="utf-8").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if ": " in line and line[0] != " ")
        if fields.get("Status") != "install ok installed":
            continue
        name, version, architecture = fields["Package"], fields["Version"], fields["Architecture"]
        escaped = version.replace("+", "%2B").replace(":", "%3A")
        yield {
            "type": "library",
            "name": name,
            "version": version,
            "purl": f"pkg:deb/{distribution}/{name}@{escaped}?arch={architecture}",
            "bom-ref": f"deb:{name}@{version}:{architecture}",
        }


def bill_of_materials(name: str) -> dict[str, object]:
    """Return the CycloneDX 1.6 document; the same contents always have the same serial number."""
    release = dict(line.split("=", 1) for line in OS_RELEASE.read_text().splitlines() if "=" in line)
    components = [
        *python_components(PYTHON_ROOTS),
        *system_components(DPKG_STATUS, release.get("ID", "debian").strip('"')),
    ]
    components.sort(key=lambda component: str(component["bom-ref"]))
    version = next((str(c["version"]) for c in components if c["name"] == "searchrl"), "0")
    serial = uuid.uuid5(uuid.NAMESPACE_URL, name + json.dumps(components, sort_keys=True))
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        "metadata": {"component": {"type": "container", "bom-ref": name, "name": name, "version": version}},
        "components": components,
    }


def main() -> None:
    name, target = sys.argv[1:]
    Path(target).write_text(json.dumps(bill_of_materials(name), indent=1) + "\n")


if __name__ == "__main__":
    main()
