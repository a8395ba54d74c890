"""From an open file to pixels: one family of formats per file."""
