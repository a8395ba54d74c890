"""Formats of annotations, one per file: boxes and masks as files hold them, read and written."""
