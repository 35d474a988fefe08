"""Audio and text: decode, measure, normalise and compare them. Nothing here depends on a store."""
