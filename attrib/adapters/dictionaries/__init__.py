"""Dictionaries of other libraries, into the pytree of attrib.dictionaries.dictionary."""
