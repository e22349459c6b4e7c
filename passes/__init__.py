"""The passes, one a file; `pipelines.py` is the table of contents."""
