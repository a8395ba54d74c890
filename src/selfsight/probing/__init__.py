"""Measurements of frozen features."""
