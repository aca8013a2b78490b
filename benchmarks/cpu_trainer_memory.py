"""Peak memory of the CPU trainer under the default settings: `python benchmarks/cpu_trainer_memory.py CASE` prints JSON.

A process of its own trains the two longest rows of its data twice over, which are two optimizer steps, measures the policy and saves it.
``demo`` is half a demo (answers under a grammar), ``sample`` the recorded game (free texts), and ``packed`` made up: rows as full as they
may be, nearly every token of which trains over the whole vocabulary; ``single`` holds the longest sequences that train, and ``plain``
the longest rows that take plain attention.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from training_rows import NOW, demo_sequences, sample_sequences, settings_of

from babylon_rl.models.base_model import base_model_dir
from babylon_rl.settings import load_settings
from babylon_rl.training.backends.protocol import TrainIteration, TrainSequence

ROWS = 2
WORDS = ("buy", "sell", "hold", "price", "news", "market", "rises", "falls", "because", "trade", "more", "less", "risk", "gain", "loss")


def made_up(prompt_words: int, answer_words: int, agents: int) -> list[TrainSequence]:
    """Free answers of ``agents`` in each of some ticks, all of whom were shown the same."""
    found = []
    for tick in range(ROWS):
        prompt = " ".join([f"Tick {tick}.", *(WORDS[(tick + n) % len(WORDS)] for n in range(prompt_words))])
        for agent in range(agents):
            # Drawn: what two answers begin with would stand in their row once.
            answer = " ".join(random.Random(f"{tick} {agent}").choices(WORDS, k=answer_words))
            messages = [{"role": "system", "content": "Trade."}, {"role": "user", "content": prompt}]
            found.append(
                TrainSequence(
                    messages=messages,
                    response=answer,
                    advantage=1.0 - 2.0 * (agent % 2),
                    agent_id=str(agent),
                    window=f"{NOW:%Y-%m-%dT}{tick:02}:00",
                    trajectory_id="t",
                    call_id="c",
                    step=0,
                    source="embedded",
                    purpose="action",
                    model="base",
                )
            )
    return found


CASES: dict[str, Callable[[], list[TrainSequence]]] = {
    "demo": demo_sequences,
    "sample": sample_sequences,
    "packed": lambda: made_up(50, 60, 60),
    "single": lambda: made_up(60, 1440, 1),
    "plain": lambda: made_up(60, 680, 1),
}


def longest_rows(sequences: Sequence[TrainSequence]) -> tuple[list[TrainSequence], dict[str, float]]:
    """The sequences of the longest rows, and what the longest one holds."""
    from transformers import AutoTokenizer

    from babylon_rl.training.backends.cpu.policy import pack, trainable

    tokenizer = AutoTokenizer.from_pretrained(base_model_dir(load_settings()))
    encoded = [(sequence, one) for sequence in sequences if not isinstance(one := trainable(tokenizer, sequence), str)]
    packs = sorted(pack([one for _, one in encoded]), key=lambda row: row.tokens, reverse=True)[:ROWS]
    choices = max(sum(encoded[n][1].trainable_tokens for n in row.members) for row in packs)
    return [encoded[n][0] for row in packs for n in row.members], {"row_tokens": packs[0].tokens, "row_trainable_tokens": choices}


def train(case: str) -> dict[str, float]:
    """Train as a later generation, which has a parent, and tell this process's peak in GB."""
    from babylon_rl.training.backends.cpu.trainer import CpuTrainer

    sequences, found = longest_rows(CASES[case]())
    settings = settings_of(1).model_copy(update={"babylon_rl_home": load_settings().home})
    with tempfile.TemporaryDirectory() as out:
        iteration = TrainIteration("benchmark", 1, sequences, 0, generation=2, passes=2)
        CpuTrainer(settings).train(iteration, None, Path(out), lambda step: None)
    # not ru_maxrss, which begins with the peak of whoever started the process
    peak = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return found | {"peak_gb": round(peak / 1e6, 2)}


def peak_of(case: str) -> dict[str, float]:
    """What a process of its own tells of a case."""
    ran = subprocess.run([sys.executable, __file__, case], capture_output=True, text=True, check=False)
    if ran.returncode:
        raise SystemExit(f"The case {case} failed:\n{ran.stderr[-3000:]}")
    return dict(json.loads(ran.stdout.splitlines()[-1]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=list(CASES))
    print(json.dumps(train(parser.parse_args().case)))
