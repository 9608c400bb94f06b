"""What a sweep costs and holds, counted before it runs, and the way that is chosen."""
