"""What can be shown of a finished run."""
