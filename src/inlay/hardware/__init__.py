"""Facts and probes of this machine."""
