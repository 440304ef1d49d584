"""Run whole experiments from a config: each is one file, read from top to bottom."""
