"""Runs: what executes a prepared run directory."""
