"""CPU trainer: LoRA on a small real model, computed over packed rows; and the bounds of the policies that it publishes.

The modules load torch. The bounds stand here, as checks of stored numbers need nothing else.
"""

COLLAPSED_SHARE = 0.95  # as COLLAPSE of the gate, there of decisions, here of probability
TURNED_SHARE = 0.6
KL_BOUND = 4.0  # nats a choice: the base would take such answers one time in 50; trained versions lie at 1
PARENT_BOUND = 0.2  # nats a choice
RATIO_LIMIT = 5.0
