"""The embedded base model and example tasks."""
