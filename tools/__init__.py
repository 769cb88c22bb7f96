"""Scripts that make the bundled model and the sample tiles; not part of the installed package."""
