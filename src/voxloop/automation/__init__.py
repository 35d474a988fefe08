"""Automation: workers that run the pipeline's jobs."""
