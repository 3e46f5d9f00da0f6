"""A search over settings: trials over one base, a winner judged on rows that chose nothing."""
