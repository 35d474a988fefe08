"""What keeps a workspace whole: verify and mend, back up and restore, forget."""
