"""Scores, comparison, verdict."""
