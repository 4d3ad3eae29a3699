"""The embedded task: arithmetic on a 20-hour clock."""
