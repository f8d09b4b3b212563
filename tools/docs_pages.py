"""What MkDocs adds to docs/: the page of all keys, pages of the root, and files that are linked.

The hooks of mkdocs.yml. In the repository a page links to what lies beside it, such as
``../configs/base.yaml``; in the site that file is a copy under files/. config.py is linked as well,
which becomes the page of all keys, made from its comments.
"""

from __future__ import annotations

import ast
import posixpath
import re
import tokenize
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "rambo_det/config.py"
#: Files of the repository that are pages of the site.
PAGES = {CONFIG: "keys.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
PAGES["README.md"] = "index.md"
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)(#[^)\s]*)?(?=\))")


class Key(NamedTuple):
    """A key of the config; of a node of keys, the default is "CN()"."""

    node: str
    name: str
    default: str
    comment: str


def config_keys(source: str) -> list[Key]:
    """The keys of a source text, each with the comment right above it.

    Those that are assigned to a variable which stands for a node of ``cfg``: after
    ``rambo = cfg.MODEL.RAMBO``, the line ``rambo.BETA = 0.5`` is the key BETA of MODEL.RAMBO.
    """
    comments = {}
    for token in tokenize.generate_tokens(StringIO(source).readline):
        if token.type == tokenize.COMMENT and not token.line[: token.start[1]].strip():
            comments[token.start[0]] = token.string.removeprefix("#").strip()
    keys, nodes = [], {}
    assigned = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Assign))
    for node in sorted(assigned, key=lambda node: node.lineno):
        target, value = ast.unparse(node.targets[0]), ast.unparse(node.value)
        if value.startswith("cfg.") and "." not in target:
            nodes[target] = value.removeprefix("cfg.")
        variable, _, name = target.rpartition(".")
        place = nodes.get(variable, variable.removeprefix("cfg").lstrip("."))
        if variable in nodes or value == "CN()":
            first = node.lineno
            while first - 1 in comments:
                first -= 1
            text = " ".join(comments[line] for line in range(first, node.lineno))
            keys.append(Key(place, name, value, text))
    return keys


def keys_page(source: str) -> str:
    """The page of all keys, from the text of config.py."""
    parts = [
        "# Keys of the config",
        "`rambo_det.add_rambo_config(cfg)` adds these keys. Set them in a yaml, or at the end of a "
        "command line: `MODEL.RAMBO.MARGIN 0.5`. This page is made from the comments of "
        "`rambo_det/config.py`.",
    ]
    for key in config_keys(source):
        path = f"{key.node}.{key.name}".lstrip(".")
        if key.default == "CN()":
            parts.append(f"## {path}")
        else:
            parts += [f"### {key.name}", f"`{path}`, by default `{key.default}`"]
        if key.comment:
            parts.append(key.comment)
    return "\n\n".join(parts) + "\n"


def site_links(text: str, page: str) -> tuple[str, set[str]]:
    """The text of a page with the links of the repository as those of the site.

    Args:
        text: Markdown.
        page: where it lies in the repository.

    Returns:
        The text, and the files of the repository that have to be copied to ``files/``.
    """
    copies = set()

    def replaced(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page), match[1]))
        if path.startswith("docs/"):
            path = path.removeprefix("docs/")
        elif path in PAGES:
            path = PAGES[path]
        elif (ROOT / path).is_file():
            copies.add(path)
            path = f"files/{path}"
        else:
            return match[0]  # MkDocs warns
        return path + (match[2] or "")

    return LINK.sub(replaced, text), copies


def sources() -> dict[str, str]:
    """Every page of the site, by its name there, with its place in the repository."""
    found = {path.name: f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))}
    return {**found, **{page: file for file, page in PAGES.items() if page not in found}}


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that are not in docs/, and copies of linked files."""
    from mkdocs.structure.files import File

    copies: set[str] = set()
    for page, source in sources().items():
        text = (ROOT / source).read_text(encoding="utf-8")
        if source == CONFIG:
            text = keys_page(text)
        copies |= site_links(text, source)[1]
        if not source.startswith("docs/"):
            files.append(File.generated(config, page, content=text))
    for path in sorted(copies):
        files.append(File.generated(config, f"files/{path}", abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turns the links of the repository into those of the site."""
    source = sources()[page.file.src_uri]
    return markdown if source == CONFIG else site_links(markdown, source)[0]
