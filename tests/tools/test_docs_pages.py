"""Links in the repository's documents, as the site has them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from docs_pages import OUTSIDE, ROOT, site_links

PAGES = {"index.md", "cpp.md", "notes/accuracy.md", "plugins/FORMAT.md", "CONTRIBUTING.md"}


@pytest.mark.parametrize(
    ("page", "markdown", "expected"),
    [
        ("cpp.md", "[text](notes/accuracy.md)", "[text](notes/accuracy.md)"),
        (
            "cpp.md",
            "see [text](../plugins/FORMAT.md#fused-operators).",
            "see [text](plugins/FORMAT.md#fused-operators).",
        ),
        ("notes/accuracy.md", "[text](../cpp.md)", "[text](../cpp.md)"),
        ("CONTRIBUTING.md", "[text](docs/cpp.md#x)", "[text](cpp.md#x)"),
        ("plugins/FORMAT.md", "[text](../CONTRIBUTING.md)", "[text](../CONTRIBUTING.md)"),
        ("CONTRIBUTING.md", "the [license](LICENSE) and ![a picture](no.png)", "the license and a picture"),
        ("cpp.md", "[text](https://example.org/x.md)", "[text](https://example.org/x.md)"),
        ("cpp.md", "[text](#here)", "[text](#here)"),
        (
            "cpp.md",
            "generate({}, [](std::string_view utf8) { f(utf8); })",
            "generate({}, [](std::string_view utf8) { f(utf8); })",
        ),
    ],
)
def test_links_lead_to_the_same_page_in_the_site(page: str, markdown: str, expected: str) -> None:
    assert site_links(markdown, page, PAGES) == expected


def test_every_page_of_docs_is_in_the_navigation_and_every_page_exists() -> None:
    named = set(re.findall(r"^\s+- .+: (\S+\.md)$", (ROOT / ".mkdocs.yml").read_text(), re.MULTILINE))
    own = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert named == own | {name for name in OUTSIDE if name.endswith(".md")}
    assert all(Path(ROOT, name).is_file() for name in OUTSIDE)
