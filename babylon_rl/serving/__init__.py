"""Serving: versions in front of agents, and markets in front of outside agents."""
