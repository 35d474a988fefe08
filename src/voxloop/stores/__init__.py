"""The stores: catalog, blobs, vectors, jobs and bus. One library each, chosen by URL."""
