"""The geoseg command line: thin over the library."""
