"""What happens at a call: checks, plans, launches, and the cache of what was emitted."""
