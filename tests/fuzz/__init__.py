"""Files as nobody should make them, given to every reader; see ``run.py``."""
