"""Pretext tasks, one a file."""
