"""Scripted judge: an OpenAI-compatible loopback server with seeded answers, no language model.

It replaces a paid judge in tests, benchmarks and trials: same wire format, real HTTP, and every fault a provider can make, each with a
chosen probability. An answer is a function of the settings, the request and the number of times that the request was made before.
"""
