"""Local web pages for people: one server, one security rule, one decision journal."""
