"""Adds the pages outside ``docs/`` to the documentation site, and adapts links to its paths (a hook of mkdocs)."""

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
# The folders of pages beside docs/. Pages keep their path of the repository; the README becomes the start page.
OUTSIDE = ("*.md", "deploy/**/README.md", "docker/README.md", "services/*/README.md")
# Not images. The text may hold one level of brackets: a badge is an image inside a link.
LINK = re.compile(r"(?<!\!)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^)\s]+)\)")
IMAGE = re.compile(r"(\!\[[^\]]*\]\()([^)\s]+)(\))")
# A fence ends at the next one with the same indentation, so fences inside lists are found, too.
FENCE = re.compile(r"^( *)```.*?^\1```", re.MULTILINE | re.DOTALL)


def site_path(path: str) -> str:
    """Return a page's or an image's path below the site's root, from its path in the repository."""
    if path == "README.md":
        return "index.md"
    return path.removeprefix("docs/")


def repository_path(path: str) -> str:
    """Return a page's path in the repository, from its path below the site's root."""
    if path == "index.md":
        return "README.md"
    return f"docs/{path}" if (ROOT / "docs" / path).exists() else path


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages outside ``docs/``."""
    for path in sorted(path for pattern in OUTSIDE for path in ROOT.glob(pattern)):
        name = str(path.relative_to(ROOT))
        files.append(File.generated(config, site_path(name), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links to other pages. Links to source files become plain text, because the site does not hold them."""
    folder = os.path.dirname(repository_path(page.file.src_uri))
    kept: list[str] = []

    def keep(block: re.Match[str]) -> str:
        kept.append(block[0])
        return f"\0{len(kept) - 1}\0"

    def target(link: str) -> str | None:
        path, _, anchor = link.partition("#")
        if "://" in link or not path:
            return link
        site = site_path(os.path.normpath(os.path.join(folder, path)))
        if files.get_file_from_path(site) is None:
            return None
        relative = os.path.relpath(site, os.path.dirname(page.file.src_uri))
        return f"{relative}#{anchor}" if anchor else relative

    def rewrite(link: re.Match[str]) -> str:
        found = target(link[2])
        return link[1] if found is None else f"[{link[1]}]({found})"

    def rewrite_image(image: re.Match[str]) -> str:
        return f"{image[1]}{target(image[2]) or image[2]}{image[3]}"

    # Fenced code is replaced by placeholders first and restored last, so that links in examples stay as they are. NUL
    # characters delimit a placeholder, because no page contains them.
    text = IMAGE.sub(rewrite_image, LINK.sub(rewrite, FENCE.sub(keep, markdown)))
    return re.sub("\0(\\d+)\0", lambda number: kept[int(number[1])], text)
