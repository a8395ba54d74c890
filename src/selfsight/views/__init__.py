"""Batched crops and colour on the device."""
