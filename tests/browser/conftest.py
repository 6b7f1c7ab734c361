"""Provides a headless browser that returns a page after its scripts have run, and its console messages."""

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
    "--enable-logging=stderr",
    "--virtual-time-budget=5000",
)
CONSOLE_LINE = re.compile(r"CONSOLE.*?\] \"(?P<text>.*)\", source")


@dataclass(frozen=True)
class Page:
    """A page as rendered by the browser."""

    dom: str
    console: list[str]


OpenPage = Callable[..., Page]


@pytest.fixture
def open_page(tmp_path: Path) -> OpenPage:
    """Return a function that opens an address; ``width`` is the width of the window in pixels."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs chromium")

    def open_(address: str, *, width: int = 1280, screenshot: Path | None = None) -> Page:
        output = [f"--screenshot={screenshot}"] if screenshot else ["--dump-dom"]
        command = [
            browser,
            *FLAGS,
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={width},2000",
            *output,
            address,
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return Page(done.stdout, CONSOLE_LINE.findall(done.stderr))

    return open_
