"""Evidence: players meet in the same unseen markets, and the differences are told with their uncertainty."""
