"""Verbs on the adapter library, one file a verb."""
