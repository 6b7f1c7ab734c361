"""The documentation site builds without a broken link, a broken anchor or a page that the navigation lacks."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.cluster.static.monitoring_registry import alerts
from tests.unit.docs.documented_commands import ROOT


def test_the_site_builds_in_strict_mode(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    start = (tmp_path / "site" / "index.html").read_text()
    assert "Train a small search agent" in start and 'href="operations/' in start
    for alert, rule in alerts().items():
        area = re.fullmatch(r"docs/runbooks/(\w+)\.md#\w+", rule["annotations"]["runbook_url"])
        assert area
        page = tmp_path / "site" / "runbooks" / area[1] / "index.html"
        assert f'id="{alert.lower()}"' in page.read_text(), f"{page} has no section for {alert}"
