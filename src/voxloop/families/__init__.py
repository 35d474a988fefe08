"""What is particular to a model family, behind one contract."""
