"""The verbs: one a file, each the story of what a user asked for."""
