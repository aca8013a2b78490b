"""Adapters of the CPU line's base that no training would publish, for benchmarks/broken_checkpoints.py, made with plain gradient steps.

The trainer refuses a policy that collapses, so these are made around it: likelihood of wanted answers under the served grammar, on prompts
of training hours as simulated agents are asked. The same recipe, base and seed give the same weights on one machine.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from babylon_rl.errors import TrainingError
from babylon_rl.market.headlines import TRAINING
from babylon_rl.market.simulation import strategies
from babylon_rl.market.simulation.agents import ONE_TICK
from babylon_rl.market.simulation.config import preset
from babylon_rl.market.simulation.games import ONE_TICK_GAME
from babylon_rl.market.simulation.generation import generate
from babylon_rl.market.simulation.record import Call
from babylon_rl.market.simulation.run import play
from babylon_rl.market.spawn import training_seed
from babylon_rl.models.base_model import quiet_loading
from babylon_rl.models.grammar import language
from babylon_rl.models.scoring import EncodedSequence, encode_sequence
from babylon_rl.models.threads import set_threads
from babylon_rl.training.backends.cpu.policy import load_policy
from babylon_rl_tests.unpacked import branch_logprobs

Answer = Callable[[Call], str]
TEACHER = "news-reader"
HOUR_NAME = "2025-11-20T{:02d}:00"
ENOUGH = 0.02  # nats a choice


@dataclass(frozen=True)
class Recipe:
    """How an adapter is made: up to ``steps`` of ``rows`` answers each towards ``answer``, until their loss is below ``ENOUGH``.

    ``spread`` is the standard deviation of drawn weights, 0 for none; prompts are those of so many simulated ``hours``.
    """

    name: str
    words: str
    answer: Answer | None = None
    steps: int = 0
    rows: int = 8
    rate: float = 3e-3
    spread: float = 0.0
    hours: int = 4
    seed: int = 0


def first_answer(action: str) -> Answer:
    """The first answer of a call's grammar that takes an action, whatever the call says."""

    def of(call: Call) -> str:
        texts = language(call.response_format["json_schema"]["schema"]) if call.response_format else ()
        return next(text for text in texts if f'"action": "{action}"' in text)

    return of


def taught(call: Call) -> str:
    """What the news reader answered."""
    return call.response


HOLD = Recipe("always-hold", "gradient steps towards HOLD", first_answer("hold"), steps=12)
BUY = Recipe("always-buy", "gradient steps towards BUY of the first market shown", first_answer("buy"), steps=12)
NOISE = Recipe("noise", "weights drawn at random", spread=0.1)
BROKEN = (HOLD, BUY, NOISE)


def served_calls(hours: int, seed: int = 0) -> list[Call]:
    """The decisions of the news reader, alone in training hours, with what a model would have been asked and may answer."""
    found = list[Call]()
    for hour in range(hours):
        scenario = generate(preset("hour", edition=TRAINING, seed=training_seed(seed, HOUR_NAME.format(hour))))
        seats = {TEACHER: strategies.factory(TEACHER, scenario, ONE_TICK)}
        found += play(scenario, seats, seed=seed, game=ONE_TICK_GAME).records[TEACHER].calls.values()
    return found


def make_adapter(recipe: Recipe, base_dir: Path, out: Path, threads: int = 1) -> Path:
    """Make an adapter and save it, as peft does, in ``out``.

    Raises:
        TrainingError: a wanted answer is not in its call's grammar.
    """
    set_threads(threads)
    import torch

    torch.manual_seed(recipe.seed)
    tokenizer, model = load_policy(base_dir, None)
    trained = [one for one in model.parameters() if one.requires_grad]
    if recipe.spread:
        for parameter in trained:
            torch.nn.init.normal_(parameter, std=recipe.spread)
    if recipe.answer is not None:
        wanted = [(call, recipe.answer(call)) for call in served_calls(recipe.hours, recipe.seed)]
        _teach(model, trained, [_encoded(tokenizer, call, text) for call, text in wanted], recipe)
    with quiet_loading():
        model.save_pretrained(str(out))
    (out / "README.md").unlink(missing_ok=True)  # the model card is written on publication
    return out


def _encoded(tokenizer: Any, call: Call, text: str) -> EncodedSequence:
    found = encode_sequence(tokenizer, call.messages, text, call.response_format)
    if not isinstance(found, EncodedSequence):
        raise TrainingError(f"{text} cannot be taught: {found}.")
    return found


def _teach(model: Any, trained: Sequence[Any], answers: Sequence[EncodedSequence], recipe: Recipe) -> None:
    """Plain steps of Adam on the mean log-likelihood of the tokens that had alternatives, rows drawn in turn from a seeded order."""
    import torch

    order = torch.randperm(len(answers), generator=torch.Generator().manual_seed(recipe.seed)).tolist()
    optimizer = torch.optim.Adam(trained, lr=recipe.rate)
    model.train()
    for step in range(recipe.steps):
        rows = [answers[order[(step * recipe.rows + row) % len(order)]] for row in range(recipe.rows)]
        found = branch_logprobs(model, rows)
        loss = -found.logprobs.sum() / found.mask.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if float(loss.detach()) < ENOUGH:
            return
