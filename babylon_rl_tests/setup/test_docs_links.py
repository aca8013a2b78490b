"""Links in README.md, CONTRIBUTING.md and docs lead to files and headings that are there, and what there is, is named in them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from babylon_rl.cli import COMMANDS, load
from babylon_rl_tests.e2e.browser import browser_page, find_browser

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = sorted(str(page.relative_to(ROOT)) for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")))
SNAPSHOT = ROOT / "babylon_rl_tests" / "assets" / "test_definitions_snapshot.json"
LINK = re.compile(r"\]\(([^()\s]+)\)")
NAMED = re.compile(r"(?<![\w/.])docs/[\w/.-]+\.\w+")  # a page that is named without a link


def prose(page: Path) -> str:
    """The text without its code blocks, whose brackets are no links."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def links(page: Path) -> list[str]:
    """The relative links of a page."""
    return [link for link in LINK.findall(prose(page)) if not re.match(r"[a-z]+:", link)]


def anchors(page: Path) -> set[str]:
    """The fragments of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    broken = []
    for link in links(page):
        path, _, fragment = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        there = target.is_relative_to(ROOT) and target.exists()
        if not there or (fragment and fragment not in anchors(target)):
            broken.append(link)
    broken += [named for named in NAMED.findall(page.read_text(encoding="utf-8")) if not (ROOT / named).exists()]
    assert broken == []


def test_every_page_is_found_from_the_readme() -> None:
    found, ahead = set[Path](), [README]
    while ahead:
        page = ahead.pop()
        if page not in found and page.suffix == ".md" and page.exists():
            found.add(page)
            ahead += [(page.parent / link.partition("#")[0]).resolve() for link in links(page) if not link.startswith("#")]
    assert [page.name for page in (ROOT / "docs").glob("**/*.md") if page not in found and page.parent.name != "decisions"] == []


def test_the_docs_name_everything_that_the_ui_shows() -> None:
    definitions = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
    shown = {name for kind in ("assets", "jobs", "schedules", "sensors") for name in definitions[kind]}
    shown |= {check for asset in definitions["assets"].values() for check in asset["checks"]}
    pages = [ROOT / "docs" / "reference" / "ui.md", *(ROOT / "docs" / "decisions").glob("*.md")]
    named = set(re.findall(r"\w+", " ".join(page.read_text(encoding="utf-8") for page in pages)))
    assert sorted(shown - named) == []


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The docs as a site, built strictly."""
    built_in = tmp_path_factory.mktemp("site")
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "DISABLE_MKDOCS_2_WARNING": "true"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(built_in)]
    built = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return built_in


@pytest.mark.long
def test_the_docs_build_strictly_with_their_generated_reference(site: Path) -> None:
    reference = {path.stem for path in (site / "reference").glob("*.html")}
    assert {"settings", "commands", "assets", "tables", "api", "glossary"} <= reference
    assert "JUDGE_MODEL" in (site / "reference" / "settings.html").read_text(encoding="utf-8")
    api = (site / "reference" / "api.html").read_text(encoding="utf-8")
    assert all(f'id="babylon_rl.{module}' in api for module in ("recorder", "serving.inference", "frames", "alerts"))


@pytest.mark.slow
def test_the_site_begins_with_the_tutorial_and_ends_with_decisions(site: Path) -> None:
    page = (site / "index.html").read_text(encoding="utf-8")
    page = page[page.index('data-md-component="sidebar"') :]
    first = [page.index(f'href="{folder}/') for folder in ("tutorial", "howto", "reference", "explanation", "evidence", "decisions")]
    assert first == sorted(first)


@pytest.mark.long
def test_the_site_from_a_disk_has_search_and_dark_mode(site: Path, tmp_path: Path) -> None:
    if (program := find_browser()) is None:
        pytest.skip("there is no Chromium here (Debian: apt install chromium)")
    assert "https://" not in "".join(re.findall(r"<script src=\S+|<link rel=\"stylesheet\" \S+", (site / "index.html").read_text()))
    with browser_page(program, tmp_path) as page:
        page.open(f"file://{site}/index.html")
        page.wait_for("babylon_rl")
        toggles = page.evaluate("[...document.querySelectorAll('label[for^=__palette]')].map(label => label.title)")
        assert toggles == ["Dark mode", "Light mode"]
        page.evaluate("document.querySelector('.md-search__input').focus()")
        page.call("Input.insertText", text="quarantine")
        assert "quarantine" in page.wait_for("matching documents", inside=".md-search-result").lower()


@pytest.mark.slow
def test_the_reference_names_every_command(site: Path) -> None:
    titles = re.findall(r"<code>babylon-rl ([\w -]+)</code>", (site / "reference" / "commands.html").read_text(encoding="utf-8"))
    commands = {name: load(name) for name in COMMANDS}
    assert set(titles) >= {f"{name} {child}" for name, command in commands.items() for child in getattr(command, "commands", ())}
    assert set(titles) >= {name for name, command in commands.items() if not hasattr(command, "commands")}


def test_the_readme_fits_a_few_screens() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 90
