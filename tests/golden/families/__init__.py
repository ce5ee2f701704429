"""Fixtures and recordings, one file a family; `record.py` lists them."""
