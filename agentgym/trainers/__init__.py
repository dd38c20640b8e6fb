"""Training: a loop of about 80 lines and its five seams."""
