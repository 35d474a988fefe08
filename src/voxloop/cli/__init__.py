"""The command `voxloop`: load, call one step, print. No logic of its own, and no heavy import before it is needed."""

from voxloop.cli.app import app, main

__all__ = ["app", "main"]
