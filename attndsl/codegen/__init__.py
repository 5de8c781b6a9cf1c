"""From an analysed variant to source text: the plan decides, the printer prints, the template arranges."""
