"""Language models: the packaged base, constrained generation, scoring, an OpenAI-compatible server and client, checkpoints.

Importing it lets the threads of torch sleep while they wait, unless OMP_WAIT_POLICY says otherwise: OpenMP's spin by default, and on busy
cores a spinning thread delays the one that it waits for. The variable is read when torch is first imported.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
