"""A test for each line of docs/explanation/threats.md that no other room has."""
