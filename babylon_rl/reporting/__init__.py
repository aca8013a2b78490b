"""Reporting: plots, tables and HTML pages from plain values."""
