"""CPU trainer: LoRA on a small real model, computed over packed rows."""
