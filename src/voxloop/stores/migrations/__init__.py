"""The catalog's schema, step by step; append only."""
