"""What a slow router model costs: alone, asked when the embedded classifier is unsure, and raced with it."""
