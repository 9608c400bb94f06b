"""What people look at: tables now."""
