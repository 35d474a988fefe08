"""Where things are kept: catalog, blobs, vectors, jobs, bus. One library each, chosen by URL."""
