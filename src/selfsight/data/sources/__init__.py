"""Where items come from: one kind of source a file."""
