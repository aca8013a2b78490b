"""Commands ``ab start``, ``ab status`` and ``ab stop``: A/B tests of versions on live agents."""

from typing import Annotated

import typer

from babylon_rl.cli.output import Column, JsonOption, Table, emit, listed
from babylon_rl.cli.releases import ReasonOption, author_of
from babylon_rl.errors import UsageError
from babylon_rl.serving import ab_tests
from babylon_rl.settings import load_settings
from babylon_rl.store.columns import document_of
from babylon_rl.store.database import open_database
from babylon_rl.store.releases import read_tests

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The test's name; it also decides which agents are in which arm.")]
app = typer.Typer(name="ab", no_args_is_help=True, help="A/B tests of versions on live agents.")
TESTS = (
    Column("name", "name"),
    Column("state", "state"),
    Column("arms", "arms"),
    Column("shares", "shares"),
    Column("started", "startedAt"),
)
ARMS = ("version", "share %", "agents", "hours", "P&L $/agent-hour", "interval")


@app.command("start")
def start(
    name: NameArgument,
    versions: Annotated[str, typer.Option(help="Versions, or base, separated by commas; the others are compared with the first.")],
    shares: Annotated[str, typer.Option(help="Percent of all agents in each arm, separated by commas.")],
    expected: Annotated[float | None, typer.Option(help="Dollars an agent-hour at which the comparison is sharpest. Default: 50.")] = None,
    reason: ReasonOption = "by hand",
    as_json: JsonOption = False,
) -> None:
    """Put agents into the arms of a test, each for as long as it runs."""
    settings = load_settings()
    try:
        percents = [float(share) for share in shares.split(",")]
    except ValueError:
        raise UsageError(f"--shares {shares!r}: write percents separated by commas, such as 50,50.") from None
    arms = [version.strip() for version in versions.split(",")]
    with open_database(settings) as database, database.connect() as connection:
        # The expected effect is stored with the test, as it must be fixed before the first look.
        ab_tests.start(connection, name, arms, percents, expected or ab_tests.EXPECTED_USD, author_of(reason))
        _show(ab_tests.report(connection, name, settings), as_json)


@app.command("status")
def status(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Default: all tests, without their results.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare the arms of a test by the data so far. Repeated reading costs nothing."""
    settings = load_settings()
    with open_database(settings, prepare=False) as database, database.connect() as connection:
        if name is not None:
            _show(ab_tests.report(connection, name, settings), as_json)
            return
        tests = read_tests(connection)
    rows = [document_of(test, "name", "state", "arms", "shares") | {"startedAt": test.started_at.isoformat() + "Z"} for test in tests]
    emit({"tests": rows}, [Table(TESTS, rows)], as_json)


@app.command("stop")
def stop(name: NameArgument, reason: ReasonOption = "by hand", as_json: JsonOption = False) -> None:
    """End a test. Its agents follow the rollouts again, and its result stays."""
    settings = load_settings()
    with open_database(settings) as database, database.connect() as connection:
        ab_tests.stop(connection, name, author_of(reason))
        _show(ab_tests.report(connection, name, settings), as_json)


def _show(report: ab_tests.ABReport, as_json: bool) -> None:
    document = report.document
    arms = listed(ARMS, [list(arm.values()) for arm in document["arms"]], f"A/B test {report.test.name}, {report.test.state}")
    emit(document, [arms, report.verdict, f"Agents by arm: {report.sample_ratio}.", document["spillover"]], as_json)
