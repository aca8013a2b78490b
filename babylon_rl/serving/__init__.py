"""Serving: HTTP servers in front of markets and models."""
