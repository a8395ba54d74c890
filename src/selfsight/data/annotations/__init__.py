"""Formats of annotations, one a file: boxes and masks as files hold them, read and written."""
