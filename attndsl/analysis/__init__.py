"""Facts about expressions: what they depend on, what values they take, where a mask is zero, how a row streams."""
