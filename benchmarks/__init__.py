"""Measurements beside the peers, in one run on one machine: `make bench` or `make bench NAME=training`."""
