"""The gate: whether a model is really better, and which one is champion."""
