"""Dictionaries for SmolLM2-135M, a folder each, as sae-lens writes them; attrib finds them by this distribution's entry point."""
