"""Reads the commands, links and code snippets of the documentation from its Markdown files."""

import contextlib
import io
import os
import re
import runpy
import shlex
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[3]
# In running text, code that begins with one of these is a command; in code blocks, everything is.
PROGRAMS = ("helm", "kubectl", "searchrl", "make", "python")
SHELLS = ("bash", "sh")

_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_HERE_DOCUMENT = re.compile(r"<<-?\s*['\"]?(\w+)['\"]?[^\n]*\n(.*?)^\s*\1$", re.MULTILINE | re.DOTALL)
_SUBSTITUTION = re.compile(r"\$\(([^()]+)\)")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
_SEPARATORS = frozenset({"|", "||", "&&", ";", "&", "(", ")"})
_REDIRECTION = re.compile(r"\d?[<>]")


class Command(NamedTuple):
    """One simple command, as a shell would split it."""

    page: str
    words: tuple[str, ...]
    is_inline: bool = False
    """Whether it stands in running text, where arguments may be missing or shown as ``[...]``."""

    @property
    def program(self) -> str:
        return self.words[0]

    @property
    def text(self) -> str:
        return f"{self.page}: {' '.join(self.words)}"

    @property
    def flags(self) -> list[str]:
        """Options without their values; what follows ``--`` belongs to another program."""
        words = self.words[: self.words.index("--")] if "--" in self.words else self.words
        return [word.partition("=")[0] for word in words if re.match(r"--?[A-Za-z]", word)]

    def values_of(self, *flags: str) -> list[str]:
        """The values given to any of these options, once or repeatedly."""
        found = [after for word, after in zip(self.words, self.words[1:], strict=False) if word in flags]
        return found + [
            word.partition("=")[2] for word in self.words if word.partition("=")[0] in flags and "=" in word
        ]


def pages() -> list[Path]:
    """Every page of the documentation."""
    patterns = ("*.md", "docs/**/*.md", "deploy/**/*.md", "docker/*.md", "services/*/README.md")
    return sorted(path for pattern in patterns for path in ROOT.glob(pattern))


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def commands() -> list[Command]:
    """Every command of the code blocks, and those of ``PROGRAMS`` in running text."""
    return [found for page in pages() for found in _commands_of(name_of(page), page.read_text())]


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of each code block of a page."""
    return [(language, body) for _, language, body in _FENCE.findall(page.read_text())]


def links() -> Iterator[tuple[str, str, str]]:
    """Page, file and anchor of every link into the project."""
    for page in pages():
        for target in _LINK.findall(_FENCE.sub("", page.read_text())):
            if "://" not in target and not target.startswith("mailto:"):
                path, _, anchor = target.partition("#")
                yield name_of(page), os.path.relpath(page.parent / path if path else page, ROOT), anchor


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub generates from a page's headings."""
    return {_slug(heading) for heading in _HEADING.findall(_FENCE.sub("", page.read_text()))}


@cache
def options_of(module: str) -> frozenset[str]:
    """The options in the help of ``python -m module``."""
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        patch.setattr("sys.argv", [module, "--help"])
        # Run in this process: starting one that imports torch takes several seconds.
        with pytest.raises(SystemExit) as exit_, warnings.catch_warnings():
            # Runpy warns about a module that another test has imported already; only its help is read here.
            warnings.simplefilter("ignore", RuntimeWarning)
            runpy.run_module(module, run_name="__main__", alter_sys=False)
    assert not exit_.value.code, output.getvalue()
    return frozenset(re.findall(r"(?<![\w-])--?[a-z][\w-]*", output.getvalue()))


def inline_code(page: Path) -> list[str]:
    return _INLINE.findall(_FENCE.sub("", page.read_text()))


def here_documents() -> Iterator[tuple[str, str]]:
    """Page and text of each here-document in the scripts of code blocks."""
    for page in pages():
        for language, body in blocks(page):
            if language in SHELLS:
                yield from ((name_of(page), text) for _, text in _HERE_DOCUMENT.findall(body))


def _slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def _commands_of(page: str, text: str) -> Iterator[Command]:
    for _, language, body in _FENCE.findall(text):
        if language in SHELLS:
            yield from _split(page, _HERE_DOCUMENT.sub("", body.replace("\\\n", " ")))
    for code in _INLINE.findall(_FENCE.sub("", text)):
        if len(code.split()) > 1 and code.split()[0].rsplit("/", 1)[-1] in PROGRAMS:
            for command in _split(page, code.replace("[", "").replace("]", "").replace("...", "")):
                yield command._replace(is_inline=True)


def _split(page: str, script: str) -> Iterator[Command]:
    for inner in _SUBSTITUTION.findall(script):
        yield from _split(page, inner)
    for line in _logical_lines(_SUBSTITUTION.sub("SUBSTITUTED", script)):
        words: list[str] = []
        for word in (*_words(line), ";"):
            if word not in _SEPARATORS:
                words.append(word)
            elif words:
                yield from _known(page, words)
                words = []


def _logical_lines(script: str) -> Iterator[str]:
    """The lines of a script; lines inside an open quotation are joined."""
    pending = ""
    for line in script.splitlines():
        pending = f"{pending}\n{line}" if pending else line
        try:
            _words(pending)
        except ValueError:
            continue
        yield pending
        pending = ""
    assert not pending, f"a quotation is not closed: {pending}"


def _words(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;()")
    lexer.whitespace_split = True
    return list(lexer)


def _known(page: str, words: list[str]) -> Iterator[Command]:
    """Yield the command behind words of the shell, variables and prefixes; redirections are left out."""
    while words and re.fullmatch(r"\w+=\S*|time|sudo|env|export|do", words[0]):
        words = words[1:]
    places = [place for place, word in enumerate(words) if _REDIRECTION.match(word)]
    words = words[: places[0]] if places else words
    if words and words[0] not in ("for", "done"):
        yield Command(page, (words[0].rsplit("/", 1)[-1], *words[1:]))
