"""Maintenance of a workspace: verify and repair, back up and restore, prune, rename, delete, forget."""
