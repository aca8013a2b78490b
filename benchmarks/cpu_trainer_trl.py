"""TRL's side of cpu_trainer.py and methods.py, under a Python of its own: `PYTHON cpu_trainer_trl.py ASKED.json` prints JSON.

GRPOTrainer with the same adapter, precision, sequences and advantages; in place of its rollouts it is given the recorded tokens, so that it
neither generates nor asks a reward. With `out` it saves the adapter there, after one pass, or after `cpu_seconds` of the processor.
Nothing of this package is imported.
"""

import json
import sys
import time
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

ASKED = json.loads(Path(sys.argv[1]).read_text())
SEQUENCES, A_STEP, A_ROW = ASKED["sequences"], ASKED["a_step"], ASKED["a_row"]


def padded(rows, value, *, left):
    width = max(map(len, rows))
    filled = [[value] * (width - len(row)) + list(row) if left else list(row) + [value] * (width - len(row)) for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) if left else [1] * len(row) + [0] * (width - len(row)) for row in rows]
    return torch.tensor(filled), torch.tensor(mask)


class Replayed(GRPOTrainer):
    """Hands out the recorded rollouts, step after step."""

    taken = 0

    def _generate_and_score_completions(self, inputs):
        some = [SEQUENCES[(self.taken + n) % len(SEQUENCES)] for n in range(len(inputs))]
        self.taken += len(inputs)
        pad = self.processing_class.pad_token_id
        prompts, prompt_mask = padded([one["prompt"] for one in some], pad, left=True)
        completions, completion_mask = padded([one["response"] for one in some], pad, left=False)
        return {
            "prompt_ids": prompts, "prompt_mask": prompt_mask, "completion_ids": completions, "completion_mask": completion_mask,
            "advantages": torch.tensor([one["advantage"] for one in some]), "num_items_in_batch": completion_mask.sum(),
        }  # fmt: skip


class Stopwatch(TrainerCallback):
    """When each optimizer step ended."""

    def __init__(self):
        self.ends = []

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append((time.perf_counter(), time.process_time()))
        limit = ASKED.get("cpu_seconds")
        control.should_training_stop = control.should_training_stop or (limit is not None and time.process_time() >= limit)


def main():
    torch.set_num_threads(ASKED["threads"])
    tokenizer = AutoTokenizer.from_pretrained(ASKED["base"], padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(ASKED["base"], dtype=torch.bfloat16)
    layers = model.config.num_hidden_layers
    config = GRPOConfig(
        output_dir="out", use_cpu=True, bf16=False, per_device_train_batch_size=A_ROW, gradient_accumulation_steps=A_STEP // A_ROW,
        num_generations=2, max_steps=1 + len(SEQUENCES) // A_STEP, learning_rate=3e-3, beta=0.0, gradient_checkpointing=False,
        report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True, seed=0,
    )  # fmt: skip
    lora = LoraConfig(
        r=16,
        lora_alpha=32,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
        layers_to_transform=list(range(int(layers * 0.4), layers)),
    )
    watch = Stopwatch()
    trainer = Replayed(
        model=model, reward_funcs=lambda completions, **kwargs: [0.0] * len(completions), args=config, processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"prompt": ["."] * len(SEQUENCES)}), peft_config=lora, callbacks=[watch],
    )  # fmt: skip
    trainer.train()
    if "out" in ASKED:
        trainer.model.save_pretrained(ASKED["out"], save_embedding_layers=False)
    (clock, cpu), (clock_end, cpu_end) = watch.ends[0], watch.ends[-1]
    print(json.dumps({"seconds": clock_end - clock, "cpu_seconds": cpu_end - cpu}))


main()
