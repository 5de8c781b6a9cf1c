"""attndsl in other libraries' places: FlexAttention, transformers."""
