"""The scripted judge: an OpenAI-compatible server on loopback whose answers follow a seeded model instead of a language model.

It stands in for a paid judge in tests, benchmarks and trials: same wire format, real HTTP, and every fault a provider can make, at
a chosen probability. What it answers is a function of its settings, the request and how often that request was made before.
"""
