"""Adds pages from outside docs/ to the site: a hook of MkDocs, named in .mkdocs.yml.

In: the site's navigation. Out: pages and pictures from the rest of the repository, under the same paths, and links that
lead from one page to another in the site as they do in the repository.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT: Final = Path(__file__).resolve().parent.parent

OUTSIDE: Final = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "plugins/FORMAT.md",
    "plugins/kernels/w4a16_linear/README.md",
    "plugins/kernels/w4a16_linear/share_of_floor.png",
    "plugins/kernels/w8a16_linear/README.md",
    "tools/study_results/study.md",
    *sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("tools/study_results/*.png")),
)
"""Files that become part of the site."""

_LINK: Final = re.compile(r"(?P<text>!?\[[^\]]*\])\((?P<target>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)")
_DOCS: Final = "docs"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the files from outside docs/."""
    from mkdocs.structure.files import File

    for name in OUTSIDE:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Page, files: Files, **_: object) -> str:
    """Turns links of the repository into links of the site; a link to something outside the site becomes plain text."""
    return site_links(markdown, page.file.src_uri, {file.src_uri for file in files})


def site_links(markdown: str, page: str, pages: set[str]) -> str:
    """Returns a page's Markdown with the links that it needs in the site.

    Args:
        markdown: The Markdown in the repository.
        page: Its path in the site.
        pages: All paths in the site.
    """
    where = page if page in OUTSIDE else f"{_DOCS}/{page}"

    def link(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(where), match["target"]))
        in_site = target.removeprefix(f"{_DOCS}/")
        if in_site not in pages:
            return match["text"].strip("![]")
        return f"{match['text']}({posixpath.relpath(in_site, posixpath.dirname(page) or '.')}{match['anchor'] or ''})"

    return _LINK.sub(link, markdown)
