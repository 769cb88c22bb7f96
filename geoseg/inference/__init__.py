"""Windows of one tile to labels and confidence, and the Dask graph over tiles."""
