"""A user's own data: files, rows, and the two tasks made of them. It imports from its own room and below."""
