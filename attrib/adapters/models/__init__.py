"""Models of other libraries, into the pytree of attrib.models.transformer."""
