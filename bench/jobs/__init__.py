"""Jobs, files and statistics at size, and disturbed."""
