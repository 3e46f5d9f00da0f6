"""Files to rows, and rows to examples."""
