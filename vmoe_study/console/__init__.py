"""What is shown on the terminal while something runs."""
