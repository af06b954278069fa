"""Files that are whole or absent, fingerprints of what they were made from, and the record of each stage."""

TYPED = "ROMA_DS_COMMAND"
"""Environment variable with the command as the user typed it, from which environment.json takes it."""
