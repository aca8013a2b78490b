"""Language models: the packaged base, constrained generation, scoring, an OpenAI-compatible server and client, checkpoints."""
