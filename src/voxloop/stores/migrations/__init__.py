"""Migrations of the catalog's schema. Append only."""
