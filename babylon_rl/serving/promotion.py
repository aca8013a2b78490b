"""Promotion of versions: from the gate's decision to a rollout, by guards on live data.

Every interval of a guard holds at every look (statistics/live.py), so that it may be asked as often as one likes. Calls and decisions are
counted as independent trials, though those of an agent are alike: the guards of shares may therefore stop a rollout too early. P&L takes
agents as the units. The trial's agents are compared with those of the deployed version in the same time.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta

from babylon_rl.errors import ReleaseRefused
from babylon_rl.evaluation.benchmark import Say
from babylon_rl.evaluation.confirmation import confirm
from babylon_rl.evaluation.gate import COLLAPSE, FAIL, INCONCLUSIVE, PASS
from babylon_rl.evaluation.statistics.live import live_comparison, live_share
from babylon_rl.market.model_endpoints import served_here
from babylon_rl.models.server_process import Serving
from babylon_rl.progress import Progress, no_progress
from babylon_rl.serving.ab_tests import EXPECTED_USD
from babylon_rl.serving.recorded_privacy import agent_hash, why_agents_unknown
from babylon_rl.serving.releases import deploy, propose, rollback
from babylon_rl.serving.status_shapes import GuardDocument
from babylon_rl.settings import Settings
from babylon_rl.store.benchmarks import Confirmation, read_confirmations
from babylon_rl.store.connection import Connection
from babylon_rl.store.live_usage import AgentHour, CallCounts, read_agent_hours, read_call_counts
from babylon_rl.store.releases import AUTOMATION, BASE, ON_TRIAL, ReleaseAuthor, Rollout, read_rollouts, read_routing

PNL = "P&L"
STEP_LASTS = timedelta(hours=24)  # before automation advances a rollout: each hour of the day is seen
# A version on trial is rolled back when its share of errors, slow calls or invalid actions is shown to be so much above the deployed
# version's, and advances when that is excluded.
SHARE_LIMIT = 0.02
SLOW_SECONDS = 10  # a call that takes longer counts as slow
LOSS_USD = 25.0  # loss an agent-hour against the deployed version that must be excluded before the last step
CONFIDENCE = 0.975  # of each of two intervals, so that their difference holds with 95 %


def promote(
    connection: Connection,
    version: str,
    decision: str,
    settings: Settings,
    say: Say,
    *,
    clock: Callable[[], datetime],
    serving: Serving = served_here,
    on_progress: Progress = no_progress,
) -> str:
    """Act on the gate's decision on a version, once; return a sentence.

    A version that passed becomes a candidate for a person to deploy. With AUTO_PROMOTE it is confirmed in fresh markets first, and its
    rollout starts at the first of its steps.

    Raises:
        ModelUnavailable: the confirmation's endpoint stays down; the next run goes on from there.
    """
    if decision != PASS:
        return f"{version} is not released: its gate's decision is {decision}."
    earlier = next((rollout for rollout in read_rollouts(connection) if rollout.version == version), None)
    # A confirmation plays for minutes: no transaction stays open meanwhile.
    connection.commit()
    if earlier is not None:
        return f"{version} is {earlier.state.replace('_', ' ')} already."
    try:
        if not settings.auto_promote:
            propose(connection, version, ReleaseAuthor(AUTOMATION, "passed the gate", clock(), automatic=True))
            return f"{version} is a candidate: `babylon-rl models deploy {version}` rolls it out, or AUTO_PROMOTE=true does."
        test = confirm(connection, version, settings, say, clock=clock, serving=serving, on_progress=on_progress)
        reason = test if isinstance(test, str) else sentence(test)
        author = ReleaseAuthor(AUTOMATION, f"passed the gate; {reason}", clock(), automatic=True)
        confirmed = not isinstance(test, str) and test.confirmed
        trial = next(iter(read_rollouts(connection, ON_TRIAL)), None)
        connection.commit()
        # One version is on trial at a time: a confirmed one waits as a candidate until ``_start_waiting`` takes it.
        if not confirmed or trial is not None:
            propose(connection, version, author)
            waits = "a person decides" if trial is None else f"{trial.version} is on trial"
            return f"{version} is a candidate, and {waits}: {reason}"
        rollout = deploy(connection, version, settings, author)
    except ReleaseRefused as refused:
        return f"{version} is not released: {refused}"
    return f"{version} is {rollout.state} at {rollout.percentage:g} % of agents: {reason}"


def advance(connection: Connection, settings: Settings, now: datetime) -> str:
    """Advance, hold or roll back the version on trial; return a sentence.

    One guard that fails rolls it back. With AUTO_PROMOTE it advances after a day when no guard fails and all but P&L pass;
    for the last step, to all agents, P&L must pass too.
    """
    trial = next(iter(read_rollouts(connection, ON_TRIAL)), None)
    if trial is None:
        return _start_waiting(connection, settings, now)
    guards = read_guards(connection, trial, settings)
    words = f"{trial.version} at {trial.percentage:g} %: {describe(guards)}"
    connection.commit()
    try:
        if any(guard.verdict == FAIL for guard in guards):
            reason = describe([guard for guard in guards if guard.verdict == FAIL])
            # This rollout alone: the guards judged it, and a person may have ended it since.
            rollback(connection, settings, ReleaseAuthor(AUTOMATION, reason, now, automatic=True), trial_id=trial.rollout_id)
            return f"Rolled back. {words}"
        share = next((step for step in settings.rollout_steps if step > trial.percentage), 100.0)
        why_not = _why_held(trial, guards, share, settings, now)
        if why_not is not None:
            return f"Held: {why_not}. {words}"
        deploy(connection, trial.version, settings, ReleaseAuthor(AUTOMATION, describe(guards), now, automatic=True), percentage=share)
    except ReleaseRefused as refused:  # a person ended it first
        return str(refused)
    return f"Advanced to {share:g} %. {words}"


def read_guards(connection: Connection, trial: Rollout, settings: Settings) -> list[GuardDocument]:
    """Judge the version on trial by its step's calls, and agents' hours since its rollout."""
    calls = read_call_counts(connection, trial.step_since, 1000 * SLOW_SECONDS)
    control = read_routing(connection).deployed
    guards = judge_calls(calls.get(trial.version, CallCounts()), calls.get(control, CallCounts()))
    hours = read_agent_hours(connection, trial.created_at, agent_hash(settings))
    return guards + judge_hours(hours, trial.version, control)


def describe(guards: Sequence[GuardDocument]) -> str:
    """All guards in one line."""
    return "; ".join(f"{guard.name} {guard.verdict} ({guard.words})" for guard in guards)


def _why_held(trial: Rollout, guards: Sequence[GuardDocument], share: float, settings: Settings, now: datetime) -> str | None:
    undecided = [guard.name for guard in guards if guard.verdict != PASS and (guard.name != PNL or share == 100)]
    if trial.state == "paused":
        return "it is paused"
    if trial.strategy == "test":
        return "it is for its test agents alone"
    if (unknown := why_agents_unknown(settings)) is not None:
        return unknown
    if now - trial.step_since < STEP_LASTS:
        return f"its step lasts {STEP_LASTS / timedelta(hours=1):g} hours at least"
    if undecided:
        return f"inconclusive: {', '.join(undecided)}"
    return (
        None if settings.auto_promote else f"`babylon-rl models deploy {trial.version} --percentage {share:g}` advances it, or AUTO_PROMOTE"
    )


def _start_waiting(connection: Connection, settings: Settings, now: datetime) -> str:
    """Start the rollout of a confirmed candidate that waited, if its rival is still deployed."""
    candidate = next(iter(read_rollouts(connection, ("candidate",))), None)
    if candidate is None:
        return "No version is on trial."
    test = next((one for one in read_confirmations(connection) if one.version == candidate.version), None)
    deployed = read_routing(connection).deployed
    connection.commit()
    if not settings.auto_promote or test is None or not test.confirmed or test.reference != deployed:
        return f"{candidate.version} is a candidate, and a person decides."
    try:
        deploy(connection, candidate.version, settings, ReleaseAuthor(AUTOMATION, sentence(test), now, automatic=True))
    except ReleaseRefused as refused:
        return str(refused)
    return f"Started the rollout of {candidate.version}: {sentence(test)}"


def sentence(test: Confirmation) -> str:
    """The outcome of a confirmation in words and numbers."""
    rival = test.reference or BASE
    numbers = f"{test.improvement:+.1f} dollars an hour against {rival} in {test.markets} fresh markets, p = {test.p:.2g}"
    verdict = "confirmed" if test.confirmed else "not confirmed"
    return f"{verdict}: {numbers}, where test {test.number} needs {test.level:.2g} at most."


def judge_calls(ours: CallCounts, theirs: CallCounts) -> list[GuardDocument]:
    """Guards of errors and latency, from calls through the gateway."""
    return [
        _share("errors", (ours.failed, ours.calls), (theirs.failed, theirs.calls)),
        _share("latency", (ours.slow, ours.calls), (theirs.slow, theirs.calls)),
    ]


def judge_hours(hours: Sequence[AgentHour], version: str, control: str | None) -> list[GuardDocument]:
    """Guards of refused orders, action collapse and P&L, from the hours of agents."""
    ours, theirs = ([hour for hour in hours if hour.version == name] for name in (version, control))
    refused, control_refused = ((sum(h.refused for h in arm), sum(h.trades for h in arm)) for arm in (ours, theirs))
    return [
        _share("refused orders", refused, control_refused),
        _collapse({"hold": sum(h.holds for h in ours), "up": sum(h.up for h in ours), "down": sum(h.down for h in ours)}),
        _pnl(ours, theirs),
    ]


def _share(name: str, ours: tuple[int, int], theirs: tuple[int, int]) -> GuardDocument:
    mine, yours = (live_share(*counts, confidence=CONFIDENCE) for counts in (ours, theirs))
    # Without a control the share is held against none at all.
    low, high = (mine.low - yours.high, mine.high - yours.low) if theirs[1] else (mine.low, mine.high)
    words = f"{ours[0]} of {ours[1]}, control {theirs[0]} of {theirs[1]}"
    if ours[1] and low > SHARE_LIMIT:
        return GuardDocument(name, FAIL, f"{words}: shown to be more than {SHARE_LIMIT:.0%} above")
    if ours[1] and high <= SHARE_LIMIT:
        return GuardDocument(name, PASS, f"{words}: at most {SHARE_LIMIT:.0%} above")
    return GuardDocument(name, INCONCLUSIVE, f"{words}: too early to say")


def _collapse(actions: Mapping[str, int]) -> GuardDocument:
    total, name = sum(actions.values()), max(actions, key=lambda action: actions[action])
    share, words = live_share(actions[name], total, null=COLLAPSE), f"{name} in {actions[name]} of {total} decisions"
    if total and share.low > COLLAPSE:
        return GuardDocument("action collapse", FAIL, f"{words}: one action alone")
    if total and share.high < COLLAPSE:
        return GuardDocument("action collapse", PASS, words)
    return GuardDocument("action collapse", INCONCLUSIVE, f"{words}: too early to say")


def _pnl(ours: Sequence[AgentHour], theirs: Sequence[AgentHour]) -> GuardDocument:
    arms = [_by_agent(arm) for arm in (ours, theirs)]
    if not all(arms):
        return GuardDocument(PNL, INCONCLUSIVE, f"{len(arms[0])} agents against {len(arms[1])}: too early to say")
    found = live_comparison(*arms, expected_effect=EXPECTED_USD)
    words = f"{found.mean:+.1f} dollars an agent-hour ({found.low:+.1f} to {found.high:+.1f}), {len(arms[0])} agents against {len(arms[1])}"
    # Fails on any loss that is shown, and passes once a loss of LOSS_USD is excluded.
    if found.high < 0:
        return GuardDocument(PNL, FAIL, f"{words}: shown to earn less")
    if found.low > -LOSS_USD:
        return GuardDocument(PNL, PASS, words)
    return GuardDocument(PNL, INCONCLUSIVE, f"{words}: a loss of {LOSS_USD:g} is not excluded")


def _by_agent(hours: Sequence[AgentHour]) -> list[list[float]]:
    by_agent: dict[str, list[float]] = {}
    for hour in hours:
        by_agent.setdefault(hour.agent_id, []).append(hour.pnl_usd)
    return list(by_agent.values())
