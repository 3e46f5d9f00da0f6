"""The run folder, and what a run says while it works."""
