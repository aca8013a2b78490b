"""Serverless trainer: iterations as paid jobs at a service, each trained at most once."""
