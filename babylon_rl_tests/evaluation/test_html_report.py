"""The report as a file: sound HTML that needs and runs nothing, texts of agents only ever texts, numbers that add up, a bounded size."""

import csv
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest

from babylon_rl.errors import MarketError
from babylon_rl.evaluation.html_report import safe, write_report
from babylon_rl.evaluation.html_report.page import summarized
from babylon_rl.evaluation.html_report.runs import MOST_ROWS, MOST_RUNS, chosen, rows_of
from babylon_rl.evaluation.metrics import FEWEST_TO_DRAW, RunLabel, drawdowns, result_of, sharpe_path
from babylon_rl.evaluation.play import PLAYER_ID
from babylon_rl.evaluation.results import Result
from babylon_rl.evaluation.snapshots import Snapshot
from babylon_rl.market.simulation.actions import Action, Invalid, WritePost
from babylon_rl.market.simulation.agents import Agent, AgentFactory
from babylon_rl.market.simulation.config import preset
from babylon_rl.market.simulation.generation import generate
from babylon_rl.market.simulation.observation import Observation
from babylon_rl.market.simulation.run import play
from babylon_rl.market.simulation.scenario import Scenario
from babylon_rl.market.simulation.strategies import factory
from babylon_rl.reporting.numbers import DASH, dollars, duration, moment, number, percent, shortened, ticks_of
from babylon_rl.reporting.pages import curve_of, render

VOID = {"meta", "br", "line", "rect", "circle", "path", "polyline", "polygon"}
HOSTILE = '</td></table><script>alert("x")</script><img src=x onerror=alert(1)>&amp;\x00\u202e'


class Checked(HTMLParser):
    """What a page holds; ``wrong`` lists tags that are not closed as they were opened."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()
        self.wrong += self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


class Saying:
    """An agent that writes the same text every tick, as a post or as an answer that is no action."""

    def __init__(self, name: str, text: str, invalid: bool = False) -> None:
        self.name = name
        self._said: Action | Invalid = Invalid(text) if invalid else WritePost(text)

    def decide(self, seen: Observation) -> Action | Invalid:
        return self._said


def played(agent: AgentFactory, scenario: Scenario, name: str, **changed: Any) -> Result:
    """The result of an agent, with fields changed; its id says agent, market and repeat."""
    market = Snapshot(f"m-{scenario.digest[:6]}", scenario, 1000.0, 10_000.0)
    run = play(scenario, {PLAYER_ID: agent}, seed=changed.get("repeat", 0))
    key = f"{name}-{market.digest}-{changed.get('repeat', 0)}"
    result = result_of(run, PLAYER_ID, market, RunLabel(name, name, "strategy", "free", 0, 0, key, "engine"))
    return msgspec.structs.replace(result, **changed)


def scenarios(count: int, **options: Any) -> list[Scenario]:
    return [generate(preset("quick", seed=seed, **options)) for seed in range(count)]


def by_digest(markets: list[Scenario]) -> dict[str, Scenario]:
    return {market.digest[:16]: market for market in markets}


@pytest.fixture(scope="module")
def markets() -> list[Scenario]:
    return scenarios(6)


@pytest.fixture(scope="module")
def results(markets: list[Scenario]) -> list[Result]:
    names = ("oracle", "balanced", "nothing", "random")
    return [played(factory(name, market, "free"), market, name) for name in names for market in markets]


def page_of(results: list[Result], directory: Path, markets: list[Scenario] | None = None) -> tuple[str, Checked]:
    text = write_report(results, directory, by_digest(markets or []))[0].read_text(encoding="utf-8")
    return text, Checked(text)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_page_is_sound_and_says_who_earned_most(results: list[Result], markets: list[Scenario], tmp_path: Path) -> None:
    text, page = page_of(results, tmp_path / "new" / "report", markets)
    assert text.startswith("<!DOCTYPE html>") and page.wrong == [] and page.open == []
    assert "4 agents in 6 markets of 30 minutes each, 24 runs. oracle earned most" in page.text
    links = [value[1:] for name, value in page.attributes if name == "href"]
    assert sorted(links) == sorted(page.ids) and len(set(page.ids)) == len(page.ids)
    for heading in ("P&L over time", "P&L by run", "Paired differences", "What they did", "Runs, tick by tick"):
        assert heading in page.text


def test_the_page_needs_nothing_from_elsewhere_and_runs_nothing(results: list[Result], markets: list[Scenario], tmp_path: Path) -> None:
    text, page = page_of(results, tmp_path, markets)
    assert not {"script", "link", "img", "iframe", "object", "form", "base"} & set(page.tags)
    assert not re.search(r"https?:|url\(|@import", text)
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("src", "xlink:href")]
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'") in page.attributes
    assert ("name", "viewport") in page.attributes and "prefers-color-scheme: dark" in text


@pytest.mark.parametrize("invalid", [False, True])
def test_what_agents_write_stays_text(markets: list[Scenario], tmp_path: Path, invalid: bool) -> None:
    agent = Saying(HOSTILE, HOSTILE, invalid)
    made = played(lambda *_: agent, markets[0], HOSTILE, mandate='"><script>', benchmark_id=HOSTILE, stopped=HOSTILE)
    text, page = page_of([made, msgspec.structs.replace(made, id="other", complete=False)], tmp_path, markets)
    assert "<script" not in text and "<img" not in text and "\x00" not in text and "\u202e" not in text
    assert page.wrong == [] and 'alert("x")</script>' in page.text
    assert not [name for name, _ in page.attributes if name.startswith("on")]


def test_published_texts_stay_text_too(markets: list[Scenario], tmp_path: Path) -> None:
    events = tuple(msgspec.structs.replace(event, text=HOSTILE) for event in markets[0].events)
    posts = tuple(msgspec.structs.replace(post, text=HOSTILE, author=HOSTILE) for post in markets[0].posts)
    questions = tuple(msgspec.structs.replace(question, text=HOSTILE) for question in markets[0].questions)
    market = msgspec.structs.replace(markets[0], events=events, posts=posts, questions=questions)
    text, page = page_of([played(factory("oracle", market, "free"), market, "oracle")], tmp_path, [market])
    assert "<script" not in text and "<img" not in text and page.wrong == [] and "news, " in page.text


def test_a_template_escapes_every_value_and_replaces_forbidden_characters(tmp_path: Path) -> None:
    template = tmp_path / "some.html.j2"
    template.write_text('<p title="{{ title }}">{{ text }}{{ missing }}</p>')
    page = render(template, title="\"'<", text="<b>&\ud800 \x1b[31m\u202e", missing=None)
    assert page == '<p title="&#34;&#39;&lt;">&lt;b&gt;&amp;\ufffd \ufffd[31m\ufffd</p>'
    assert shortened("a\n b" * 500, 10) == "a ba ba…" and shortened("word " * 9, 12) == "word word…"
    assert shortened("x" * 20, 8) == "xxxxxxx…"


def test_a_timeline_tells_what_was_published_done_and_brought(markets: list[Scenario], tmp_path: Path) -> None:
    run = played(factory("oracle", markets[0], "free"), markets[0], "oracle")
    _, page = page_of([run], tmp_path, [markets[0]])
    assert all(" ".join(event.text.split()) in page.text for event in markets[0].events if len(event.text) < 200 and event.tick < 30)
    trade = next(action for action in run.actions if action.type == "open_perp")
    assert f"{trade.data['side']} {trade.data['ticker']}" in page.text and "Brought" in page.text
    assert dollars(run.trajectory.rewards[trade.tick]) in page.text


def test_without_markets_it_says_that_what_was_published_is_missing(results: list[Result], tmp_path: Path) -> None:
    _, page = page_of(results, tmp_path)
    assert "What was published is not shown" in page.text and "Published" not in page.text.replace("What was published", "")


@pytest.mark.long
def test_long_and_many_runs_are_cut_and_it_is_said(tmp_path: Path) -> None:
    market = generate(preset("week", seed=1, minutes=2000))
    run = played(factory("random", market, "free"), market, "random")
    many = [
        msgspec.structs.replace(run, id=f"run-{number}", snapshot=f"{number}", agent_id=f"agent-{number % 8}", identity=f"{number % 8}")
        for number in range(48)
    ]
    text, page = page_of(many, tmp_path, [market])
    assert f"{MOST_ROWS} of 2,000 decisions" in page.text and f"{48 - MOST_RUNS} more are in runs.csv" in page.text
    assert len(text) < 2_000_000 and page.tags.count("details") == MOST_RUNS
    assert len(rows(tmp_path / "actions.csv")) == 48 * 2000


@pytest.mark.slow
def test_a_longer_market_makes_no_longer_page(tmp_path: Path) -> None:
    sizes = []
    for minutes in (200, 2000):
        market = generate(preset("week", seed=1, minutes=minutes))
        run = played(factory("balanced", market, "free"), market, "balanced")
        sizes.append(len(page_of([run], tmp_path / str(minutes), [market])[0]))
    assert sizes[1] < 1.5 * sizes[0]


def test_the_rows_told_are_those_that_moved_money_in_time() -> None:
    market = generate(preset("week", seed=1, minutes=500))
    run = played(factory("aggressive", market, "free"), market, "aggressive")
    told = rows_of(run, market)
    ticks = [action.tick for action in told]
    left = [action for action in run.actions if action.tick not in ticks and action.type != "hold"]
    assert len(told) == MOST_ROWS and ticks == sorted(ticks)
    worth = {action.tick: abs(run.trajectory.rewards[action.tick]) for action in run.actions}
    traded = [action for action in told if action.type != "hold"]
    assert not left or min(worth[action.tick] for action in traded) >= max(worth[action.tick] for action in left)


def test_every_agent_s_best_and_worst_run_is_told_first(results: list[Result]) -> None:
    shown = chosen(results, {}, most=8)
    for agent in {result.agent_id for result in results}:
        pnls = [result.metrics.total_pnl for result in results if result.agent_id == agent]
        assert {min(pnls), max(pnls)} <= {result.metrics.total_pnl for result in shown if result.agent_id == agent}


def test_runs_that_ended_early_are_told_and_compared_with_nothing(results: list[Result], tmp_path: Path) -> None:
    early = msgspec.structs.replace(results[0], id="early", complete=False, stopped="Stopped at tick 3 of 30: the endpoint is down")
    _, page = page_of([*results, early], tmp_path)
    assert "1 run ended early (oracle) and is in no comparison." in page.text and "the endpoint is down" in page.text
    assert summarized([*results, early]) == summarized(results)
    _, alone = page_of([early], tmp_path)
    assert "No run was played to its end" in alone.text and alone.wrong == []


def test_agents_that_played_other_markets_are_a_warning(results: list[Result], tmp_path: Path) -> None:
    _, page = page_of(results[1:], tmp_path)
    assert "Not every agent played every market" in page.text
    assert "Not every agent" not in page_of(results, tmp_path)[1].text


def test_means_and_differences_are_those_of_the_runs(results: list[Result]) -> None:
    standings = summarized(results).agents
    assert [one.colour for one in standings] == [0, 1, 2, 3] and standings[0].name == "oracle"
    pnls = {(r.agent_id, r.snapshot): r.metrics.total_pnl for r in results}
    differences = summarized(results).differences
    assert len(differences) == 12
    for (ours, theirs), difference in differences.items():
        gains = [pnls[ours, market] - pnls[theirs, market] for market in dict.fromkeys(r.snapshot for r in results)]
        assert sorted(difference.values) == pytest.approx(sorted(gains))
        assert difference.interval.mean == pytest.approx(sum(gains) / 6) == -differences[theirs, ours].interval.mean
        assert difference.p is not None and 0 < difference.p <= 1
    nothing = next(one for one in standings if one.name == "nothing")
    assert nothing.row.pnl.mean == 0 and nothing.row.win_rate is None and nothing.row.action_shares == pytest.approx({"hold": 1.0})


def test_risk_over_time_is_drawn_for_whoever_has_it(results: list[Result], tmp_path: Path) -> None:
    balanced, nothing = ([run for run in results if run.agent_id == name] for name in ("balanced", "nothing"))
    drawn = curve_of([sharpe_path(run.equity, FEWEST_TO_DRAW) for run in balanced])
    assert drawn is not None and drawn.mean[-1] == pytest.approx(sum(run.metrics.sharpe or 0.0 for run in balanced) / len(balanced))
    assert drawn.start > 0 and curve_of([sharpe_path(run.equity, FEWEST_TO_DRAW) for run in nothing]) is None
    falls = curve_of([drawdowns(run.equity) for run in balanced])
    assert falls is not None and falls.mean[0] == 0.0 and max(falls.high) <= max(run.metrics.perp_metrics.max_drawdown for run in balanced)
    text, page = page_of(results, tmp_path)
    assert text.count('aria-label="Mean Sharpe ratio over time"') == 3 and text.count('aria-label="Mean drawdown over time"') == 4
    assert page.wrong == []
    assert "No run has a Sharpe ratio." in page_of(nothing, tmp_path)[1].text


def test_repeats_of_a_market_count_as_one_market(markets: list[Scenario]) -> None:
    twice = [
        played(factory(name, market, "free"), market, name, repeat=repeat)
        for name in ("random", "balanced")
        for market in markets
        for repeat in (0, 1)
    ]
    difference = summarized(twice).differences["random", "balanced"]
    assert len(difference.values) == 6 and difference.p is not None


def test_one_market_has_no_interval_and_no_test(results: list[Result], tmp_path: Path) -> None:
    one_market = [result for result in results if result.snapshot == results[0].snapshot]
    _, page = page_of(one_market, tmp_path)
    assert "one market: no interval" in page.text and "one market is no test" in page.text and page.wrong == []
    assert "inf" not in page.text and "nan" not in page.text


def test_one_name_for_two_agents_is_told_apart(results: list[Result]) -> None:
    other = [msgspec.structs.replace(r, id=f"{r.id}-other", identity="1234567890") for r in results if r.agent_id == "random"]
    names = {agent.name for agent in summarized([*results, *other]).agents}
    assert len(names) == 5 and len([name for name in names if name.startswith("random")]) == 2


def test_the_same_results_give_the_same_files(results: list[Result], markets: list[Scenario], tmp_path: Path) -> None:
    one, other = (write_report(results, tmp_path / name, by_digest(markets)) for name in ("one", "other"))
    assert [path.name for path in one] == ["index.html", "runs.csv", "actions.csv"]
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["actions.csv", "index.html", "runs.csv"]


def test_nothing_to_report_and_doubles_are_refused(results: list[Result], tmp_path: Path) -> None:
    with pytest.raises(MarketError, match="no result to report"):
        write_report([], tmp_path)
    with pytest.raises(MarketError, match="there twice: result-oracle"):
        write_report([*results, results[0]], tmp_path)


def test_the_csv_files_hold_every_number(results: list[Result], tmp_path: Path) -> None:
    write_report(results, tmp_path)
    runs, actions = rows(tmp_path / "runs.csv"), rows(tmp_path / "actions.csv")
    assert [row["id"] for row in runs] == [result.id for result in results] and len(actions) == 24 * 30
    for row, result in zip(runs, results, strict=True):
        assert float(row["pnl"]) == result.metrics.total_pnl and row["complete"] == "true" and row["stopped"] == ""
        assert (float(row["sharpe"]) if row["sharpe"] else None) == result.metrics.sharpe
        brought = [float(action["brought"]) for action in actions if action["run"] == result.id]
        assert brought == result.trajectory.rewards and math.fsum(brought) == pytest.approx(result.metrics.total_pnl)


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("=1+1", "'=1+1"), ("+1", "'+1"), ("-1", "'-1"), ("@SUM(A1)", "'@SUM(A1)"), ("\t=1", "'\t=1"), ("  =1", "'  =1"), ("\r=1", "'\r=1"),
        ("\uff1d1+1", "'\uff1d1+1"), ("\uff0b1", "'\uff0b1"), ("\uff0d1", "'\uff0d1"), (" \uff20SUM(A1)", "' \uff20SUM(A1)"),
        ("plain", "plain"), ("a=b", "a=b"),
        ("a\uff1d1", "a\uff1d1"), ("", ""), (-1.5, -1.5), (None, None), ("a\0b", "a\ufffdb"), ("\ud800", "?"),
    ],
)  # fmt: skip
def test_no_cell_is_a_formula(cell: object, expected: object) -> None:
    assert safe(cell) == expected


def test_texts_of_agents_come_through_csv_as_they_were_but_for_formulas(markets: list[Scenario], tmp_path: Path) -> None:
    said = 'a "quoted", text;\nsecond line, ünïcode 🙂'
    formula = '=HYPERLINK("http://evil","x")'
    texts = {"fine": said, formula: formula}
    write_report([played(_saying(name, text), markets[0], name) for name, text in texts.items()], tmp_path)
    actions = rows(tmp_path / "actions.csv")
    assert {row["text"] for row in actions} == {said, f"'{formula}"}
    assert {row["agent"] for row in rows(tmp_path / "runs.csv")} == {"fine", f"'{formula}"}


def _saying(name: str, text: str) -> AgentFactory:
    def make(agent_id: str, seed: int | str) -> Agent:
        return Saying(name, text)

    return make


def test_numbers_are_written_for_people() -> None:
    assert [dollars(usd) for usd in (1234.5, -5.2, 0.001, -0.001, 9.999, None, math.inf)] == [
        "+$1,234", "\N{MINUS SIGN}$5.20", "$0", "$0", "+$10", DASH, DASH,
    ]  # fmt: skip
    assert (dollars(79, sign=False), percent(0.251, 1), percent(-0.0001), number(-1.234), number(-0.0001)) == (
        "$79", "25.1 %", "0 %", "\N{MINUS SIGN}1.23", "0.00",
    )  # fmt: skip
    assert [moment(s) for s in (0, 3725, 90_000)] == ["0:00:00", "1:02:05", "day 2, 1:00:00"]
    assert [duration(s) for s in (604_800, 3600, 1800, 45)] == ["7 days", "1 hour", "30 minutes", "45 seconds"]
    assert ticks_of(-1300, 4200, 5) == [0, 2000, 4000] and ticks_of(1, 1) == [1]


def test_curves_of_unlike_lengths_share_one_time() -> None:
    curve = curve_of([[0, 10], [0, 10, 20, 30]])
    assert curve is not None and len(curve.mean) == 4 and (curve.mean[0], curve.mean[-1]) == (0, 20)
    assert curve_of([[0]]) is None
