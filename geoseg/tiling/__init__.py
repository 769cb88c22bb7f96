"""Integer geometry: the window lattice and the tiles. No files, no torch."""
