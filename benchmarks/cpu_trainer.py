"""The CPU trainer beside what else trains: `python benchmarks/cpu_trainer.py [--trl-python PATH]` prints seconds and ratios as JSON.
`--ours` prints the seconds of our turns alone: start it twice at once to see what two trainings cost each other.

Hours of the simulated market on the packaged base. The sides take turns in one run, each over the same sequences, 36 an optimizer step:
our steps with everything that becomes of a sequence (tokens, packing, tensors), without and with a KL penalty; a bare loop (forward,
backward, step) on the same rows, made beforehand, with plain and with fused attention; the same loop on rows that share nothing, 12
padded sequences at a time; and, under another Python that has it, TRL's GRPOTrainer, given the same tokens and advantages in place of
its own rollouts. Seconds of the processor tell what a busy machine's clock does not. Memory is that of cpu_trainer_memory.py.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpu_trainer_memory import CASES, peak_of
from training_rows import demo_sequences, settings_of

from babylon_rl.models.base_model import base_model_dir
from babylon_rl.models.threads import set_threads, usable_cores
from babylon_rl.settings import Settings, load_settings
from babylon_rl.training.backends.protocol import TrainIteration, TrainSequence

if TYPE_CHECKING:
    from babylon_rl.training.backends.cpu.policy import Item, Pack, PackedPolicy

SEQUENCES = 72  # of an hour of six agents, so that every tick is whole: two optimizer steps
A_STEP, A_ROW = 36, 12
TURNS = 5
BOUNDS = {"of_bare_loop": 0.85, "times_unshared": 2.0, "times_trl": 1.5}
PEAK_BOUND_GB = 3.0
RATIOS = (
    ("of_bare_loop", "bare", "ours"), ("times_unshared", "apart", "ours"), ("times_trl", "trl", "ours"), ("kl_costs", "with_kl", "ours"),
    ("plain_over_fused_attention", "fused", "bare"),
)  # fmt: skip
TRL = Path(__file__).with_name("cpu_trainer_trl.py")


Seconds = tuple[float, float]


class Sides:
    """What takes turns: each side trains the same sequences from where it left off."""

    def __init__(self, sequences: Sequence[TrainSequence], settings: Settings) -> None:
        from babylon_rl.training.backends.cpu.policy import PackedPolicy, load_policy, make_items, pack

        self.sequences, self.settings = sequences, settings
        self.tokenizer, model = load_policy(base_model_dir(settings), None)
        self.policy = PackedPolicy(model, usable_cores())
        self.items, _ = make_items(self.tokenizer, sequences)
        self.packs = pack([item.encoded for item in self.items])
        self.bare_steps = [bare_inputs(self.policy, self.items, step) for step in self._steps(self.packs)]
        self.unshared = pack([item.encoded for item in self.items], most_tokens=1)
        self.apart_steps = [padded_inputs(self.items, step) for step in self._steps(self.unshared)]

    def _steps(self, packs: "Sequence[Pack]") -> "list[list[Pack]]":
        from babylon_rl.training.backends.cpu.trainer import optimizer_steps

        return list(optimizer_steps(packs, self.settings))

    def ours(self, kl_penalty: float = 0.0) -> None:
        """Sequences to optimizer steps, as the trainer takes them."""
        import torch

        from babylon_rl.training.backends.cpu.policy import PackedPolicy, make_items, pack
        from babylon_rl.training.backends.cpu.trainer import IterationRun

        items, _ = make_items(self.tokenizer, self.sequences)
        torch.set_num_threads(1)
        settings = self.settings.model_copy(update={"kl_penalty": kl_penalty})
        # Anew: the states of its lower layers were computed by an earlier round.
        policy = PackedPolicy(self.policy.model, usable_cores())
        run = IterationRun(policy, items, TrainIteration("benchmark", 1, self.sequences, 0), settings)
        steps = list(self._steps(pack([item.encoded for item in items])))
        for number, step in enumerate(steps, start=1):
            run.take_step(step, number, len(steps))

    def with_kl(self) -> None:
        """The same with the penalty of the defaults."""
        self.ours(load_settings().kl_penalty)

    def bare(self, attention: str = "eager") -> None:
        """Forward, backward and step on ready tensors of the packed rows."""
        self._attention(attention)
        self._loop(self.bare_steps)

    def fused(self) -> None:
        """The same with torch's fused attention."""
        self.bare("sdpa")

    def apart(self) -> None:
        """The same on padded rows that share nothing."""
        self._attention("eager")
        self._loop(self.apart_steps)

    def trl(self, python: Path) -> Seconds:
        """TRL's turn, in a process of its own that leaves its start and its first step out."""
        return trl_seconds(python, self.items, base_model_dir(self.settings))

    def _attention(self, kind: str) -> None:
        self.policy.model.get_base_model().set_attn_implementation(kind)

    def _loop(self, steps: Sequence[Sequence[tuple[Any, ...]]]) -> None:
        import torch

        torch.set_num_threads(usable_cores())
        parameters = list(self.policy.parameters.values())
        optimizer = torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.0)
        causal = self.policy.model.get_base_model()
        for rows in steps:
            for ids, positions, mask, where, legal_nm, beyond_nm, taken_n, push_n in rows:
                given = {"input_ids": ids, "position_ids": positions, "attention_mask": mask, "use_cache": False}
                hidden_nd = causal.base_model(**given).last_hidden_state.flatten(0, 1)[where]
                logits_nm = torch.einsum("nd,nmd->nm", hidden_nd.float(), self.policy.head[legal_nm].float())
                logprobs_nm = torch.log_softmax(logits_nm.masked_fill(beyond_nm, float("-inf")), -1)
                (-(push_n * logprobs_nm.gather(1, taken_n[:, None])[:, 0]).sum() / A_STEP).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


def bare_inputs(policy: "PackedPolicy", items: "Sequence[Item]", step: "Sequence[Pack]") -> list[tuple[Any, ...]]:
    """A step's packed rows as tensors."""
    import torch

    from babylon_rl.models.row_attention import Reading
    from babylon_rl.training.backends.cpu.policy import before_choices, choices

    found = []
    for one in step:
        spots = choices(one, items)
        where = before_choices(one, items)
        row = one.unread
        mask = Reading([row]).mask(0, 0, len(row.tokens), policy.head)[None, None] if row.branches else None
        found.append(
            (torch.tensor([row.tokens]), torch.tensor([row.depths()]), mask, where, *targets(items, [(n, t) for _, n, t in spots]))
        )
    return found


def padded_inputs(items: "Sequence[Item]", step: "Sequence[Pack]") -> list[tuple[Any, ...]]:
    """The same sequences, ``A_ROW`` to a padded batch, as tensors."""
    import torch

    from babylon_rl.training.backends.cpu.policy import needed_ids

    members = [n for one in step for n in one.members]
    found = []
    for start in range(0, len(members), A_ROW):
        some = members[start : start + A_ROW]
        rows = [needed_ids(items[n].encoded) for n in some]
        width = max(map(len, rows))
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
        mask = (torch.arange(width)[None] < torch.tensor([len(row) for row in rows])[:, None]).long()
        spots = [(b, n, t) for b, n in enumerate(some) for t, trains in enumerate(items[n].encoded.trainable_t) if trains]
        where = [b * width + len(items[n].encoded.prompt_ids) + t - 1 for b, n, t in spots]
        found.append((ids, torch.arange(width)[None].expand(len(rows), -1), mask, where, *targets(items, [(n, t) for _, n, t in spots])))
    return found


def targets(items: "Sequence[Item]", spots: Sequence[tuple[int, int]]) -> tuple[Any, ...]:
    """[N, M] what was legal at each choice, [N, M] what only fills up, [N] the place of what was taken, [N] advantages."""
    import torch

    legal_n = [items[n].encoded.legal_t[t] or () for n, t in spots]
    width = max(map(len, legal_n))
    legal_nm = torch.tensor([[*legal, *[legal[0]] * (width - len(legal))] for legal in legal_n])
    beyond_nm = torch.arange(width)[None] >= torch.tensor([len(legal) for legal in legal_n])[:, None]
    taken_n = torch.tensor([legal.index(items[n].encoded.response_ids[t]) for legal, (n, t) in zip(legal_n, spots, strict=True)])
    return legal_nm, beyond_nm, taken_n, torch.tensor([items[n].advantage for n, _ in spots])


def seconds_of(side: Callable[[], None]) -> Seconds:
    """One turn, by the clock and by the processor."""
    started, used = time.perf_counter(), time.process_time()
    side()
    return time.perf_counter() - started, time.process_time() - used


def trl_seconds(python: Path, items: "Sequence[Item]", base: Path) -> Seconds:
    """What TRL takes for as many sequences, its first optimizer step left out."""
    encoded = [{"prompt": item.encoded.prompt_ids, "response": item.encoded.response_ids, "advantage": item.advantage} for item in items]
    given = {"base": str(base), "threads": usable_cores(), "a_step": A_STEP, "a_row": A_ROW, "sequences": encoded}
    with tempfile.TemporaryDirectory() as directory:
        asked = Path(directory) / "asked.json"
        asked.write_text(json.dumps(given))
        quiet = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        ran = subprocess.run([python, TRL, asked], capture_output=True, text=True, cwd=directory, env=quiet, check=False)
    if ran.returncode:
        raise SystemExit(f"TRL failed:\n{ran.stderr[-3000:]}")
    told = json.loads(ran.stdout.splitlines()[-1])
    return told["seconds"], told["cpu_seconds"]


def settings() -> Settings:
    """Without a KL penalty, which a bare loop does not have, and which is measured as a side of its own."""
    return settings_of(1).model_copy(update={"kl_penalty": 0.0, "babylon_rl_home": load_settings().home})


def measure(trl_python: Path | None, turns: int) -> dict[str, float]:
    """Medians of the turns, and ratios of what stood side by side; ``_cpu`` in seconds of the processor."""
    set_threads()
    sides = Sides(demo_sequences(1)[:SEQUENCES], settings())
    names = ("ours", "with_kl", "bare", "fused", "apart")
    sides.ours()  # threads, allocator and grammars are ready afterwards
    seconds: dict[str, list[Seconds]] = {name: [] for name in names}
    for turn in range(1, turns + 1):
        for name in names:
            seconds[name].append(seconds_of(getattr(sides, name)))
        if trl_python is not None:
            seconds.setdefault("trl", []).append(sides.trl(trl_python))
        print(f"turn {turn}: { ({name: taken[-1] for name, taken in seconds.items()}) }", file=sys.stderr, flush=True)
    clock = {name: statistics.median(of for of, _ in found) for name, found in seconds.items()}
    cpu = {name: statistics.median(of for _, of in found) for name, found in seconds.items()}
    tokens, apart = (sum(one.tokens for one in packs) for packs in (sides.packs, sides.unshared))
    found = {
        "turns": turns,
        "sequences": len(sides.items),
        "packed_tokens": tokens,
        "times_fewer_tokens": round(apart / tokens, 2),
        **{f"{name}_s": round(of, 2) for name, of in clock.items()},
        **{f"{name}_cpu_s": round(of, 2) for name, of in cpu.items()},
    }
    for name, one, other in RATIOS:
        if one in clock and other in clock:
            found |= {name: round(clock[one] / clock[other], 2), f"{name}_cpu": round(cpu[one] / cpu[other], 2)}
    return found


def measure_ours(turns: int) -> None:
    """Print the seconds of every turn of ours, each of two optimizer steps, by the clock and by the processor."""
    sides = Sides(demo_sequences(1)[:SEQUENCES], settings())
    for _ in range(turns):
        clock_s, processor_s = seconds_of(sides.ours)
        print(f"{clock_s:.2f} s by the clock, {processor_s:.2f} s of the processor", flush=True)


def missed(found: dict[str, float]) -> list[str]:
    """Names of the bounds that were not kept."""
    slow = [name for name, bound in BOUNDS.items() if name in found and found[name] < bound]
    return slow + [name for name, value in found.items() if name.endswith("peak_gb") and value > PEAK_BOUND_GB]


def main() -> int:
    """Print the figures; 1 when a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trl-python", type=lambda path: Path(path).absolute(), metavar="PATH", help="a Python that imports trl")
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--ours", action="store_true", help="only our turns")
    given = parser.parse_args()
    if given.ours:
        measure_ours(given.turns)
        return 0
    found = measure(given.trl_python, given.turns)
    for case in CASES:
        found |= {f"{case}_{name}": value for name, value in peak_of(case).items()}
    print(json.dumps(found | {"bounds": BOUNDS | {"peak_gb": PEAK_BOUND_GB}, "missed": missed(found)}, indent=2))
    return int(bool(missed(found)))


if __name__ == "__main__":
    sys.exit(main())
