"""Verify a workspace: recompute every hash, cross-check catalog and blobs, and repair what can be repaired."""

from voxloop.maintenance.integrity.check import Finding
from voxloop.maintenance.integrity.verifying import Verification, verify

__all__ = ["Finding", "Verification", "verify"]
