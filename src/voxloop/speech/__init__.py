"""Sound and text as such: decoded, measured, made comparable. Nothing here knows a store."""
