"""The ceiling of a game: expected dollars of decisions beside those of the best play by the prompt, and errors by kind of headline.

Expected dollars take the noise of prices out: a decision is worth what it brings on average over all that its prompt does not show
(``market.simulation.prompt_reader``), a position that lasts what each tick brings. The share of the ceiling is a version's expected
dollars over those of the best play in the same markets. docs/decisions/0034-ceiling.md says why nothing is fitted.
"""

from collections.abc import Iterable, Mapping, Sequence

from babylon_rl.evaluation.results import Result
from babylon_rl.evaluation.snapshots import Snapshot
from babylon_rl.market.simulation.actions import Action
from babylon_rl.market.simulation.agents import FREE, ONE_TICK, STAKE_USD, directed
from babylon_rl.market.simulation.observation import Headline
from babylon_rl.market.simulation.prompt_reader import CEILING_OF_GAME, Appraisal, Ceiling, appraised, course_usd
from babylon_rl.market.simulation.prompting import choice_of, stake_usd
from babylon_rl.market.simulation.record import HOLD
from babylon_rl.market.simulation.scenario import Scenario
from babylon_rl.store.benchmarks import Errors

KINDS = ("stock report", "question report", "rumour", "neutral", "none")
_APPRAISED: dict[tuple[str, str], tuple[list[Appraisal], list[float]]] = {}
_BEST_COURSE: dict[tuple[str, float], float] = {}  # of positions that last


def ceiling_of(snapshot: Snapshot) -> Ceiling | None:
    """The best play of what is played in a market; None of a recorded one, and of positions that last until a question is answered."""
    ceiling, scenario = CEILING_OF_GAME.get(snapshot.game.name), snapshot.scenario
    if ceiling is None or scenario.config is None:
        return None
    answered = any(question.resolve_tick <= scenario.ticks for question in scenario.questions)
    return None if answered and ceiling.mandate == FREE else ceiling


def appraisals(snapshot: Snapshot) -> tuple[list[Appraisal], list[float]]:
    """``appraised`` of a market that has a ceiling, for orders of one tick; a process appraises each once."""
    ceiling = ceiling_of(snapshot)
    assert ceiling is not None
    key = snapshot.scenario.digest, ceiling.name
    if key not in _APPRAISED:
        _APPRAISED[key] = appraised(snapshot.scenario, ceiling)
    return _APPRAISED[key]


def expected_usd(result: Result, snapshot: Snapshot) -> float | None:
    """Expected dollars of a run's decisions; refused and unusable ones are worth nothing."""
    ceiling = ceiling_of(snapshot)
    if ceiling is None:
        return None
    if ceiling.mandate == FREE:
        actions = iter([action if outcome == "filled" else HOLD for action, outcome in result.orders])
        return course_usd(snapshot.scenario, ceiling, lambda seen: next(actions), snapshot.start_balance)
    worth = zip(appraisals(snapshot)[0], result.orders, strict=True)
    return sum(appraisal.usd(action) for appraisal, (action, outcome) in worth if outcome == "filled")


def ceiling_usd(snapshot: Snapshot) -> float | None:
    """Expected dollars of the best play in a market."""
    ceiling = ceiling_of(snapshot)
    if ceiling is None:
        return None
    if ceiling.mandate == FREE:
        key = snapshot.scenario.digest, snapshot.start_balance
        if key not in _BEST_COURSE:
            _BEST_COURSE[key] = course_usd(snapshot.scenario, ceiling, start_balance=snapshot.start_balance)
        return _BEST_COURSE[key]
    return sum(appraisals(snapshot)[1])


def errors_by_kind(result: Result, snapshot: Snapshot) -> Sequence[Errors]:
    """``errors`` of one run by kind; none of a market without a ceiling, and of positions that last."""
    one_tick = ceiling_of(snapshot) is not None and snapshot.game.mandate == ONE_TICK
    return errors([result], {result.benchmark_id: snapshot})[0] if one_tick else ()


def errors(results: Iterable[Result], markets: Mapping[str, Snapshot]) -> tuple[list[Errors], list[Errors]]:
    """Decisions by kind of headline, in the order of KINDS, and by text with the largest loss first.

    ``markets`` are by the results' ``benchmark_id``. Where a tick shows several headlines the first counts.
    """
    kinds, texts = {name: Errors(name) for name in KINDS}, dict[str, Errors]()
    for result in results:
        snapshot = markets[result.benchmark_id]
        for appraisal, (action, outcome) in zip(appraisals(snapshot)[0], result.orders, strict=True):
            headline = next(iter(appraisal.headlines), None)
            counted = [kinds[_kind(headline, snapshot.scenario)]]
            if headline is not None:
                text = wording(headline, snapshot.scenario)
                counted.append(texts.setdefault(text, Errors(text, headline.direction)))
            usd = appraisal.usd(action) if outcome == "filled" else 0.0
            reading, stake = _reading(action, outcome, headline), stake_usd(action) or STAKE_USD
            following = 0.0
            if headline is not None and reading == "follows":
                following = usd  # its own dollars, to the last digit
            elif headline is not None:
                order = directed(headline.about, headline.direction, stake, is_question=headline.about in appraisal.yes)
                following = appraisal.usd(order)
            for one in counted:
                one.found[reading] += 1
                one.usd += usd
                one.following_usd += following
    return list(kinds.values()), sorted(texts.values(), key=lambda one: (-one.lost_usd, one.name))


def _kind(headline: Headline | None, scenario: Scenario) -> str:
    if headline is None:
        return "none"
    if headline.direction == 0:
        return "neutral"
    if headline.rumour:
        return "rumour"
    return "stock report" if any(asset.ticker == headline.about for asset in scenario.assets) else "question report"


def wording(headline: Headline, scenario: Scenario) -> str:
    """The headline's text without the company's or the question's own words, and without the mark of a rumour."""
    for asset in scenario.assets:
        if asset.ticker == headline.about:
            return headline.text.removeprefix("Rumour: ").replace(asset.name, "{c}")
    return f"{{question}} {headline.text.split(scenario.question(headline.about).text)[-1].strip()}"


def _reading(action: Action, outcome: str, headline: Headline | None) -> str:
    choice = choice_of(action)
    if outcome != "filled":
        return "unusable"
    if choice.market is None:
        return "hold"
    if headline is not None and choice.market != headline.about:
        return "otherMarket"
    if headline is None or headline.direction == 0:
        return "trades"
    return "follows" if choice.direction == headline.direction else "against"
