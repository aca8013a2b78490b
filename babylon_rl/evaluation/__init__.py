"""Evaluation: players in the same unseen markets, compared with their uncertainty."""
