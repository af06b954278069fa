"""Files that are whole or absent, fingerprints of what they were made from, and the record of each stage."""

TYPED = "ROMA_DS_COMMAND"
"""Environment variable with the command as the user typed it, from which environment.json takes it."""

CARRIED_DEVICES = "ROMA_DS_VISIBLE_DEVICES"
"""Environment variable with the devices chosen where the command was typed, which ranks put back: NAME=VALUE
of a variable to set, or NAME alone of one to unset; several with colons."""
