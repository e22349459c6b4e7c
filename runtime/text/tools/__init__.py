"""Tool calls: what they are, how models write them, and one incremental parser for every way."""
