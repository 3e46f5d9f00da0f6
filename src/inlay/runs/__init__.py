"""The run folder: its files, its typed record, its guard events; and the reporters of progress."""
