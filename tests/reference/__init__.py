"""Slow and plain: what attrib's values are held against."""
