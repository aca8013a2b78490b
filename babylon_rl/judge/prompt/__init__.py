"""Prompt of a judge: what it is shown of an hour and its agents, and in which words."""
