"""What is told about a run: its picture, its replay, its plugins."""
