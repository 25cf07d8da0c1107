"""Takes a request apart and sets each part beside what the machine could do."""
