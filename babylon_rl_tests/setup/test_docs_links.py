"""Links in README.md, CONTRIBUTING.md and docs lead to files and headings that are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(str(page.relative_to(ROOT)) for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")))
LINK = re.compile(r"\]\(([^()\s]+)\)")
NAMED = re.compile(r"(?<![\w/.])docs/[\w/.-]+\.\w+")  # a page that is named without a link


def prose(page: Path) -> str:
    """The text without its code blocks, whose brackets are no links."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def anchors(page: Path) -> set[str]:
    """The fragments of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    links = [link for link in LINK.findall(prose(page)) if not re.match(r"[a-z]+:", link)]
    broken = []
    for link in links:
        path, _, fragment = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        inside = target.is_relative_to(ROOT)
        if not inside or not target.exists() or (fragment and fragment not in anchors(target)):
            broken.append(link)
    broken += [named for named in NAMED.findall(page.read_text(encoding="utf-8")) if not (ROOT / named).exists()]
    assert broken == []


def test_every_page_is_found_from_the_readme() -> None:
    seen, ahead = set[Path](), [ROOT / "README.md"]
    while ahead:
        page = ahead.pop()
        if page in seen or page.suffix != ".md" or not page.exists():
            continue
        seen.add(page)
        ahead += [(page.parent / link.partition("#")[0]).resolve() for link in LINK.findall(prose(page)) if not re.match(r"[a-z]+:", link)]
    assert sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md") if page not in seen) == []
