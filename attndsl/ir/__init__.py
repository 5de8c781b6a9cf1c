"""The typed expression program every stage reads and writes: `Variant` and the nodes it is made of."""
