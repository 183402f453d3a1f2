"""One file a framework; see README.md in the folder above."""
