"""A run over a scene: its tiles as Dask tasks, its folder, its record and its report."""
