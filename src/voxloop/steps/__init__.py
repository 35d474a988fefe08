"""The steps, in the order of the data: each takes the open workspace and leaves records and events."""
