"""What runs without anybody: workers that take the jobs of the pipeline."""
