"""The admin page as a browser shows it: on a screen and on a phone, light and dark, with axe's rules, and its buttons."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl_tests.e2e.admin_page_picture import opened
from babylon_rl_tests.e2e.browser import Page, browser_page, find_browser
from babylon_rl_tests.serving.admin_rows import BATCH, fill, note_step
from babylon_rl_tests.serving.admin_server import AdminServer, dagster_stand_in, running_admin
from babylon_rl_tests.serving.gateways import rows, wait_for
from babylon_rl_tests.serving.test_admin_page import with_key

pytestmark = [pytest.mark.long, pytest.mark.skipif(find_browser() is None, reason="no Chromium")]
AGENT = "/admin/agent?id=agent-1"


@pytest.fixture
def admin(settings: Settings, database: Database) -> Iterator[AdminServer]:
    fill(database, settings, hours=2000)
    with running_admin(settings, database) as server:
        yield server


@pytest.fixture
def page() -> Iterator[Page]:
    program = find_browser()
    assert program is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, browser_page(program, Path(profile) / "own", 1200, 900) as own:
        yield own


def test_the_page_fits_a_phone_and_breaks_no_rule_of_axe(admin: AdminServer, page: Page) -> None:
    for path in ("/admin", AGENT):
        for width, scheme in ((375, "dark"), (1200, "light")):
            opened(page, admin.url + path, width, scheme)
            page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
            assert page.evaluate("document.documentElement.scrollWidth") <= width, (path, width)
            assert broken_rules(page) == [], (path, width, scheme)
    assert page.evaluate("window.ran") is None, "nothing of an agent ran"


def test_agents_with_ids_of_18_digits_are_read_on_a_phone(settings: Settings, database: Database, page: Page) -> None:
    fill(database, settings, hours=60, long_ids=True)
    with running_admin(settings, database) as server:
        opened(page, f"{server.url}/admin", 375, "light")
        boxes = page.evaluate("""[...document.querySelectorAll('[aria-label="Agents of the newest hour"] tbody tr')].map(row => {
            const cells = [...row.children].map(cell => cell.getBoundingClientRect());
            return [row.children[0].innerText, row.getBoundingClientRect().height, cells.at(-1).width,
                Math.max(...cells.map(cell => cell.right))];
        })""")
    # Beside them the agent whose id is markup, first in the table.
    assert len(boxes) == 17 and all(name.isdigit() and len(name) == 18 for name, *_ in boxes[1:])
    for name, height, reason_width, right in boxes[1:]:
        assert height <= 110 and reason_width >= 300 and right <= 375, (name, height, reason_width, right)


def test_the_loss_moves_while_one_looks_and_a_button_asks_before_it_acts(admin: AdminServer, database: Database, page: Page) -> None:
    opened(page, f"{admin.url}/admin", 1200, "light")
    note_step(database, [0.9, 0.25])
    page.wait_for("last 0.2500", inside="#live")
    cancel = "document.querySelector('form[data-call$=cancel]')"
    page.evaluate(f"{cancel}.elements.reason.value = 'enough'")
    page.evaluate(f"{cancel}.requestSubmit()")
    assert page.wait_for("Cancel batch-now?", inside="#ask[open] p")
    assert page.evaluate("[...document.querySelectorAll('#ask button')].map(b => b.innerText)") == ["Change nothing", "Cancel the training"]
    page.evaluate("document.querySelector('#ask button[value=\"\"]').click()")
    time.sleep(0.3)
    state = f'SELECT "state" FROM babylon_rl.batches WHERE "batchId" = \'{BATCH}\''
    assert rows(database, state) == [{"state": "training"}]
    page.evaluate(f"{cancel}.requestSubmit()")
    page.evaluate("document.querySelector('#ask button[value=yes]').click()")
    page.wait_for("batch-now is cancelled", inside="#said")
    assert rows(database, state) == [{"state": "failed"}]


def test_the_slider_deploys_and_a_refusal_is_said(admin: AdminServer, database: Database, page: Page) -> None:
    opened(page, f"{admin.url}/admin", 1200, "light")
    deploy = "document.querySelector('form[data-call$=deploy]')"
    page.evaluate(f"{{ const s = {deploy}.elements.share; s.value = 60; s.dispatchEvent(new Event('input')) }}")
    page.wait_for("60 %", inside="output[for=share]")
    page.evaluate(f"{deploy}.requestSubmit()")
    page.wait_for("Put v1.0.1 in front of 60 % of the agents?", inside="#ask p")
    page.evaluate("document.querySelector('#ask button[value=yes]').click()")
    page.wait_for("v1.0.1 is rolling.", inside="#said")
    wait_for(
        lambda: rows(database, 'SELECT "percentage" FROM babylon_rl.rollouts WHERE "state" = \'rolling\'')[0]["percentage"] == 60, "60 %"
    )
    page.evaluate("document.querySelector('form[data-call$=trigger]').requestSubmit()")
    page.evaluate("document.querySelector('#ask button[value=yes]').click()")
    page.wait_for("Dagster at", inside="#said.failed")


def test_a_login_that_ends_leads_to_the_login_page_with_a_word(settings: Settings, database: Database, page: Page) -> None:
    with running_admin(settings, database) as server:
        opened(page, f"{server.url}/admin", 1200, "light")
        # From the first key on this machine needs one, too.
        with_key(server, database)
        page.wait_for("Your login has ended: log in again.", inside="[role=alert]")
        assert page.evaluate("location.pathname") == "/admin"
        assert broken_rules(page) == []
        page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
        assert broken_rules(page) == []


def test_buttons_start_a_training_and_roll_a_version_back(settings: Settings, database: Database, page: Page) -> None:
    fill(database, settings, hours=200)
    with dagster_stand_in() as dagster:
        chosen = {"dagster_url": dagster.url, "train_rl_local": True, "local_base_model": "dry", "lookback_hours": 10**5}
        with running_admin(settings.model_copy(update=chosen), database) as server:
            opened(page, f"{server.url}/admin", 1200, "light")
            page.evaluate("document.querySelector('input[name=force]').click()")
            page.evaluate("document.querySelector('form[data-call$=trigger] button').click()")
            page.wait_for("Freeze a batch of what there is and train it?", inside="#ask p")
            page.evaluate("document.querySelector('#ask button[value=yes]').click()")
            page.wait_for("their run is launched", inside="#said")
            ((job, tags),) = dagster.launched
            newest = rows(database, 'SELECT "batchId" FROM babylon_rl.batches ORDER BY "createdAt" DESC LIMIT 1')
            assert job == "train" and [{"batchId": tags["dagster/partition"]}] == newest
            opened(page, f"{server.url}/admin", 1200, "light")
            page.evaluate("document.querySelector('form[data-call$=rollback] button').click()")
            page.wait_for("Take v1.0.1 back?", inside="#ask p")
            page.evaluate("document.querySelector('#ask button[value=yes]').click()")
            page.wait_for("v1.0.1 is rolled back", inside="#said")
    states = """SELECT "version", "state" FROM babylon_rl.rollouts WHERE "state" <> 'superseded'"""
    assert {"version": "v1.0.1", "state": "rolled_back"} in rows(database, states)


def broken_rules(page: Page) -> list[list[str]]:
    """Serious and critical findings of axe-core on the open page: impact, rule and element."""
    import axe_core_python

    page.evaluate((Path(axe_core_python.__file__).parent / "axe.min.js").read_text("utf-8"))
    found = page.evaluate("axe.run().then(found => found.violations.map(v => [v.impact, v.id, v.nodes[0].html]))")
    return [one for one in found if one[0] in ("serious", "critical")]
