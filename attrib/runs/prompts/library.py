"""Libraries that only some forms of prompts need."""

from functools import partial

from attrib.core.optional import needed

library = partial(needed, argument="prompts", extra="jobs")
"""A module of a package that may not be installed, by its name."""
