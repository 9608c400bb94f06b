"""Forward passes: to the values at sites, to what each head does, and with dictionaries put in."""
