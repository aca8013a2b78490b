"""The cures of the trust region, each on and off: `python benchmarks/trust_region.py [--seeds N] [--generations N] [--arms ...]`.

In memory, with the product's market, loss, trainer and bounds. All arms continue from one first generation (scripts and one agent of
ours, credit by tick), or from --parent. A later one replays the legal answers to each prompt for their tick. A refused version is not
continued from; a version plays the gate's markets alone: dollars, dollars that its decisions can be expected to bring by the prompt,
share of reports followed, mean stake of its orders, shares of decisions that hold and that close. Arm `on` has every cure, `off` none,
`no-CURE` all but one:

* kl: trust region around the parent, and the bound of a kind of prompt
* rate: by generation, else 3e-3 in each
* target: cross-entropy to the improved policy, else a policy gradient weighed by the parent's probabilities
* scale: advantages divided by 0.12, else by each group's own deviation
* entropy: a bonus of 0.03, else none

A line of JSON per arm, seed and generation is kept under the state directory and not run again. It takes two to four core-minutes,
22 in float32 (two Zen 3 cores).
"""

import argparse
import json
import math
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from babylon_rl.cli.demo_stages import BASE_EDITION
from babylon_rl.errors import Diverged
from babylon_rl.evaluation.snapshots import benchmark_snapshots
from babylon_rl.judge.answer_groups import tick_score
from babylon_rl.judge.consensus import ADVANTAGE_SCALE
from babylon_rl.market.headlines import TRAINING
from babylon_rl.market.replay import FUTURES, gains
from babylon_rl.market.simulation import prompting, strategies
from babylon_rl.market.simulation.actions import Action, Invalid
from babylon_rl.market.simulation.agents import FREE, Decision
from babylon_rl.market.simulation.config import preset
from babylon_rl.market.simulation.games import GAMES, Game, game_named
from babylon_rl.market.simulation.generation import futures, generate
from babylon_rl.market.simulation.ledger import Fill
from babylon_rl.market.simulation.prompt_reader import CEILING_OF_GAME, WITH_POSITIONS, appraised, course_usd
from babylon_rl.market.simulation.record import HOLD, AgentRecord, Call
from babylon_rl.market.simulation.run import GameTable
from babylon_rl.market.simulation.scenario import Scenario
from babylon_rl.models.base_model import base_model_dir
from babylon_rl.models.checkpoints import saving_weights
from babylon_rl.models.encoding import encode_prompt
from babylon_rl.models.grammar import compile_grammar
from babylon_rl.models.scoring import EncodedSequence
from babylon_rl.models.threads import set_threads
from babylon_rl.settings import Settings, load_settings
from babylon_rl.training.backends.cpu import PARENT_BOUND, TURNED_SHARE, bounds, trainer
from babylon_rl.training.backends.cpu.answers import LEAST_TARGET, at_unit_weight, normalized, weighed
from babylon_rl.training.backends.cpu.loss import LossWeights
from babylon_rl.training.backends.cpu.policy import Group, Item, PackedPolicy, choices, grouped, load_policy, pack
from babylon_rl.training.backends.protocol import TrainIteration
from babylon_rl.types import NO_SPREAD
from babylon_rl.versions import content_version

FIRST = "first"  # generation 1 of all arms
CURES = ("kl", "rate", "target", "scale", "entropy")
ARMS = {FIRST: frozenset[str](), "on": frozenset[str](), "off": frozenset(CURES)} | {f"no-{cure}": frozenset({cure}) for cure in CURES}
OWN = "own"
KEPT = ("klParent", "stepBack", "turnedShare", "topActionShare", "kl", "entropy", "optimizerSteps")


@dataclass(frozen=True)
class Asked:
    """A decision of ours: its K legal answers with their tokens' log-probabilities, probabilities and orders, and the one taken.

    ``scores_k`` are the answers' scores over the futures of the tick, empty where they were not asked for.
    """

    hour: int
    tick: int
    encoded_k: list[EncodedSequence]
    logprobs_k: list[tuple[float, ...]]
    probability_k: list[float]
    action_k: list[Action | Invalid]
    taken: int
    scores_k: list[float]


class Player:
    """A policy with its whole distribution over the legal answers of a prompt."""

    def __init__(self, base: Path, adapter: Path | None) -> None:
        self.tokenizer, self._model = load_policy(base, adapter)
        self._policy = PackedPolicy(self._model)

    def legal(self, messages: Any, schema: dict[str, Any]) -> dict[str, EncodedSequence]:
        """Every legal answer to a prompt, encoded."""
        prompt, grammar = encode_prompt(self.tokenizer, messages), compile_grammar(schema, self.tokenizer)
        legal = {text: (tokens, tuple(grammar.legal_t(tokens))) for text, tokens in grammar.tokens.items()}
        return {text: EncodedSequence(prompt, tokens, t, tuple(len(one) > 1 for one in t)) for text, (tokens, t) in legal.items()}

    def logprobs(self, sequences: Sequence[EncodedSequence]) -> list[tuple[float, ...]]:
        """Log-probabilities of each answer's tokens."""
        items = [Item(one, 0.0, 1.0, (math.nan,) * len(one.response_ids)) for one in sequences]
        found = [[0.0] * len(one.response_ids) for one in sequences]

        def compute(group: Group) -> Any:
            spots = [spot for row in group for spot in choices(row, items)]
            with torch.no_grad():
                return spots, self._policy.values(self._policy.hidden(group, items), items, spots)[0].tolist()

        self._model.eval()
        for spots, values in self._policy.each(grouped(pack(sequences)), compute):
            for (_, n, t), value in zip(spots, values, strict=True):
                found[n][t] = value
        return [tuple(row) for row in found]


def play_hours(
    player: Player,
    hours: Sequence[Scenario],
    scripts: Sequence[str],
    seed: str,
    game: Game,
    *,
    greedy: bool = False,
    replayed: bool = False,
) -> tuple[list[Asked], list[dict[str, AgentRecord]]]:
    """Play hours in lockstep, each with one agent of ours; return its decisions and all records by hour."""
    rng, asked = random.Random(seed), list[Asked]()
    # Who sits on our seat is not asked: the policy answers for it, in all hours at once.
    rooms = [
        GameTable(
            hour,
            {name: strategies.player(name, hour, game) for name in scripts} | {OWN: strategies.player("balanced", hour, game)},
            seed,
            game=game,
        )
        for hour in hours
    ]
    for tick in range(hours[0].ticks):
        prompts = [prompting.request(table.look()[OWN], game) for table in rooms]
        legal = [player.legal(*prompt) for prompt in prompts]
        logprobs = iter(player.logprobs([one for answers in legal for one in answers.values()]))
        for place, table in enumerate(rooms):
            own, texts = table.seen[OWN], list(legal[place])
            logprobs_k = [next(logprobs) for _ in texts]
            probability_k = [math.exp(math.fsum(one)) for one in logprobs_k]
            taken = probability_k.index(max(probability_k)) if greedy else rng.choices(range(len(texts)), probability_k)[0]
            action_k = [prompting.ordered(text, own, game) for text in texts]
            call = Call(OWN, prompts[place][0], texts[taken], game.prompt_version, prompts[place][1])
            decisions = {name: table.seats[name].decide(table.seen[name], lambda: 0.0) for name in scripts}
            own_k = {text: Decision(action) for text, action in zip(texts, action_k, strict=True)} if replayed else {}
            others = futures(hours[place], tick, FUTURES) if replayed else []
            scores_k = [fmean(map(tick_score, usd)) for usd in gains(table, decisions, OWN, own_k, others).values()]
            asked.append(Asked(place, tick, list(legal[place].values()), logprobs_k, probability_k, action_k, taken, scores_k))
            table.play(decisions | {OWN: Decision(action_k[taken], call)})
    for table in rooms:
        table.look()
    return asked, [{name: seat.record for name, seat in table.seats.items()} for table in rooms]


def held_dollars(hour: Scenario, record: AgentRecord) -> float:
    """Expected dollars of what a player of positions that last did."""
    done = iter([action if isinstance(outcome, Fill) else HOLD for action, outcome in zip(record.actions, record.outcomes, strict=True)])
    return course_usd(hour, WITH_POSITIONS, lambda seen: next(done))


def first_items(player: Player, asked: Sequence[Asked], records: Sequence[dict[str, AgentRecord]]) -> list[Item]:
    """Answers of all agents, in groups of a tick scored by what each earned in it."""
    ours, items = {(one.hour, one.tick): one for one in asked}, list[Item]()
    for (hour, tick), own in ours.items():
        gained = {name: record.equity[tick + 1] - record.equity[tick] for name, record in records[hour].items()}
        scores = {name: tick_score(usd if abs(usd) > 1e-9 else 0.0) for name, usd in gained.items()}
        mean = fmean(scores.values())
        group = list[Item]()
        for name, record in records[hour].items():
            encoded, served_t = own.encoded_k[own.taken], own.logprobs_k[own.taken]
            if name != OWN:
                call = record.calls[tick]
                encoded = player.legal(call.messages, call.response_format or {})[call.response]
                served_t = (math.nan,) * len(encoded.response_ids)
            group.append(Item(encoded, (scores[name] - mean) / ADVANTAGE_SCALE, 1.0, served_t))
        items += alike(group)
    return at_unit_weight(items)


def answer_items(asked: Sequence[Asked], cures_off: frozenset[str]) -> list[Item]:
    """Answers to each prompt by the scores of their replay for the tick."""
    items = []
    for one in asked:
        sums_k = [math.fsum(logprobs) for logprobs in one.logprobs_k]
        p_k = normalized(sums_k)
        mean = math.fsum(p * score for p, score in zip(p_k, one.scores_k, strict=True))
        deviation = math.sqrt(math.fsum(p * (score - mean) ** 2 for p, score in zip(p_k, one.scores_k, strict=True)))
        if deviation < NO_SPREAD:
            continue
        scale = deviation / ADVANTAGE_SCALE if "scale" in cures_off else 1.0
        advantages_k = [(score - mean) / scale / ADVANTAGE_SCALE for score in one.scores_k]
        group = [
            Item(encoded, advantage, p, served_t, score=score / scale)
            for encoded, advantage, p, served_t, score in zip(one.encoded_k, advantages_k, p_k, one.logprobs_k, one.scores_k, strict=True)
        ]
        if "target" in cures_off:
            items += alike([item for item in group if item.token_weight >= LEAST_TARGET])
        else:
            plain = [replace(item, token_weight=1.0, served_t=(math.nan,) * len(item.served_t)) for item in group]
            items += weighed(plain, sums_k)[0]
    return at_unit_weight(items)


def alike(group: Sequence[Item]) -> list[Item]:
    """Items of a group that weighs as much as any other."""
    tokens = math.fsum(item.encoded.trainable_tokens * item.token_weight for item in group)
    return [replace(item, token_weight=item.token_weight / tokens) for item in group]


def train(
    settings: Settings, items: Sequence[Item], parent: Path | None, out: Path, generation: int, cures_off: frozenset[str], seed: int
) -> Any:
    """Train a version as the product does, but for the cures that are off. Raises Diverged: it is refused."""
    rate = trainer.of_generation(trainer.LEARNING_RATES, 1 if "rate" in cures_off else generation)
    bonus = 0.0 if "entropy" in cures_off and generation > 1 else trainer.of_generation(trainer.ENTROPY_BONUSES, generation)
    torch.manual_seed(seed)
    _, model = load_policy(base_model_dir(settings), parent)
    own = settings.model_copy(update={"learning_rate": rate})
    weights = LossWeights(bonus, settings.kl_penalty, trainer.of_generation(trainer.STALE_PROBABILITIES, generation))
    iteration = TrainIteration("lab", 1, (), seed, generation=generation)
    run = trainer.IterationRun(PackedPolicy(model), items, iteration, own, weights)
    # Without the cure both are measured all the same.
    trainer.PARENT_BOUND = bounds.PARENT_BOUND = math.inf if "kl" in cures_off else PARENT_BOUND  # type: ignore[attr-defined]
    bounds.TURNED_SHARE = math.inf if "kl" in cures_off else TURNED_SHARE  # type: ignore[attr-defined]
    result = run.train(lambda _: None)
    out.mkdir(parents=True, exist_ok=True)
    with saving_weights(out):
        model.save_pretrained(str(out), save_embedding_layers=False)
    return {name: round(result.metrics[name], 4) for name in KEPT if name in result.metrics}


def examine(player: Player, markets: Sequence[Scenario], game: Game) -> dict[str, float]:
    """Dollars an hour of the policy alone in each market, by its likeliest answers: earned, expected, and the best by the prompt."""
    asked, records = play_hours(player, markets, (), "benchmark", game, greedy=True)
    appraisals, best_usd = zip(*(appraised(hour, CEILING_OF_GAME[game.name]) for hour in markets), strict=True)
    reports, followed, expected, soft, best = 0, 0, 0.0, 0.0, math.fsum(chain.from_iterable(best_usd))
    taken_by = [one.action_k[one.taken] for one in asked]
    stakes_usd = [usd for action in taken_by if (usd := prompting.stake_usd(action))]
    actions = Counter(prompting.choice_of(action, game).action for action in taken_by)
    for one, action in zip(asked, taken_by, strict=True):
        appraisal, taken = appraisals[one.hour][one.tick], prompting.choice_of(action)
        expected += appraisal.usd(action)
        soft += math.fsum(p * appraisal.usd(other) for p, other in zip(one.probability_k, one.action_k, strict=True))
        for event in markets[one.hour].events_at(one.tick)[:1]:
            if event.direction and not event.rumour:
                reports += 1
                followed += taken.market == event.about and taken.direction == event.direction
    sums = {"pnl": math.fsum(record[OWN].pnl_usd for record in records), "expected": expected, "atTemperature1": soft, "best": best}
    if game.mandate == FREE:
        courses = [held_dollars(hour, record[OWN]) for hour, record in zip(markets, records, strict=True)]
        sums = {"pnl": sums["pnl"], "expected": math.fsum(courses), "best": math.fsum(course_usd(hour, WITH_POSITIONS) for hour in markets)}
    means = {name: round(usd / len(markets), 1) for name, usd in sums.items()}
    shares = {"followed": followed / reports} | {name: actions[name] / len(asked) for name in ("hold", "close")}
    return means | {name: round(share, 3) for name, share in shares.items()} | {"stake": round(fmean(stakes_usd or [0.0]))}


def run_generation(
    given: argparse.Namespace, settings: Settings, arm: str, seed: int, generation: int, parent: Path | None
) -> dict[str, Any]:
    """Play, train and examine one generation; a line of the result file."""
    began_s, base, game = time.perf_counter(), base_model_dir(settings), game_named(given.game)
    numbers = range(generation * 1000, generation * 1000 + given.hours)
    edition = BASE_EDITION if generation == 1 else TRAINING
    hours = [generate(preset("hour", seed=f"training/{seed}/{number}", edition=edition, agents=6)) for number in numbers]
    player = Player(base, parent)
    scripts = strategies.STRATEGIES if generation == 1 else ()
    asked, records = play_hours(player, hours, scripts, f"{seed}/{generation}", game, replayed=generation > 1)
    items = first_items(player, asked, records) if generation == 1 else answer_items(asked, ARMS[arm])
    played_s = time.perf_counter() - began_s
    line: dict[str, Any] = {"arm": arm, "seed": seed, "generation": generation, "answers": len(items), "playSeconds": round(played_s)}
    out = given.out / f"{arm}-{seed}-{generation}"
    try:
        line |= train(settings, items, parent, out, generation, ARMS[arm], seed * 100 + generation)
    except Diverged as refused:
        return line | {"refused": str(refused), "checkpoint": None if parent is None else str(parent)}
    line["trainSeconds"] = round(time.perf_counter() - began_s - played_s)
    markets = [snapshot.scenario for snapshot in benchmark_snapshots(given.markets)]
    return line | examine(Player(base, out), markets, game) | {"checkpoint": str(out)}


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Means over the seeds, a row for each arm and generation."""
    play = ("expected", "atTemperature1", "pnl", "followed", "stake", "hold", "close")
    heads = (*play, "klParent", "stepBack", "turnedShare", "topActionShare", "entropy")
    found = ["| arm | generation | seeds | refused | " + " | ".join(heads) + " |", "|---" * (4 + len(heads)) + "|"]
    for arm, generation in dict.fromkeys((line["arm"], line["generation"]) for line in lines):
        alike = [line for line in lines if (line["arm"], line["generation"]) == (arm, generation)]
        values = [[line[head] for line in alike if head in line] for head in heads]
        cells = [f"{fmean(one):.4g}" if one else "" for one in values]
        refused = sum("refused" in line for line in alike)
        found.append(f"| {arm} | {generation} | {len(alike)} | {refused} | " + " | ".join(cells) + " |")
    return "\n".join(found)


def main() -> None:
    compared = [arm for arm in ARMS if arm != FIRST]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--generations", type=int, default=4)
    parser.add_argument("--hours", type=int, default=24, help="of play in a generation")
    parser.add_argument("--markets", type=int, default=48, help="of the gate that a version is examined in")
    parser.add_argument("--arms", nargs="+", default=compared, choices=compared)
    parser.add_argument("--game", default="one-tick", choices=tuple(GAMES))
    parser.add_argument(
        "--parent", type=Path, metavar="CHECKPOINT", help="a version in place of generation 1; of any game that it can read"
    )
    given = parser.parse_args()
    set_threads(1)
    settings = load_settings()
    first = 1 if given.parent is None else 2
    start = "" if given.parent is None else f"-after-{given.parent.name}-{content_version([str(given.parent.resolve())])}"
    given.out = settings.home / "trust-region" / f"{given.game}-{given.hours}-hours-{given.markets}-markets{start}"
    given.out.mkdir(parents=True, exist_ok=True)
    kept = given.out / "lines.jsonl"
    known = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    lines = {(line["arm"], line["seed"], line["generation"]): line for line in known}
    for seed in range(given.seeds):
        for arm in given.arms:
            parent: Path | None = given.parent
            for generation in range(first, given.generations + 1):
                name = FIRST if generation == 1 else arm
                if (name, seed, generation) not in lines:
                    line = lines[name, seed, generation] = run_generation(given, settings, name, seed, generation, parent)
                    with kept.open("a") as file:
                        file.write(json.dumps(line) + "\n")
                    print(json.dumps(line), flush=True)
                parent = Path(kept_in) if (kept_in := lines[name, seed, generation]["checkpoint"]) else None
    print(table(list(lines.values())))


if __name__ == "__main__":
    main()
