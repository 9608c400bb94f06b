"""The bench of attrib's Jacobian engine: values first, then speed; see bench/README.md."""
