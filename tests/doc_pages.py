"""Helpers that read README, CONTRIBUTING and docs/: code blocks, commands and sections."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.S | re.M)


def text_of(page):
    return page.read_text(encoding="utf-8")


def blocks(page, language):
    """Returns the fenced code blocks of a page in a language ("" for none), in order."""
    return [code for name, code in _BLOCK.findall(text_of(page)) if name == language]


def commands(page):
    """Returns the command lines of the ``sh`` blocks of a page, with continued lines joined."""
    lines = "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [" ".join(line.split()) for line in lines if line.strip()]


def sections(page):
    """Returns (heading, text) of each section of a page that begins with ``## ``."""
    parts = re.split(r"^## (.+)$", text_of(page), flags=re.M)[1:]
    return list(zip(parts[::2], parts[1::2], strict=True))
