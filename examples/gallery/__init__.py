"""Published attention systems, one a file: each a few lines of attndsl beside its formula in plain torch."""
