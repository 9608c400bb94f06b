"""Kernels for attrib: one folder per operation, a plain reference beside every fast version."""
