"""Verify: every hash recomputed, catalog and blobs held against each other; what can be mended is."""

from voxloop.maintenance.integrity.check import Finding
from voxloop.maintenance.integrity.verifying import Verification, verify

__all__ = ["Finding", "Verification", "verify"]
