"""The sections of a config, one file each. The docstring under a setting is its documentation everywhere."""
