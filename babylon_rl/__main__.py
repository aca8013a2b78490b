"""``python -m babylon_rl``: the babylon-rl command."""

from babylon_rl.cli import main

main()
