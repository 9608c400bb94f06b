"""Which attrib this is: the one place that says so. The build reads it from here."""

__version__ = "0.1.0"
