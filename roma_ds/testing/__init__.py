"""For tests: several ranks on one host, and tiny models of each family."""
