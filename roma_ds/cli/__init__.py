"""The `roma-ds` command."""
