"""Model families, each behind one contract."""
