"""What a worker does: a file for each kind of cell, the task that asks for one, and what is kept for the next."""
