"""Content-dependent block tables: what they are, how routers make them, how they join a variant's mask."""
