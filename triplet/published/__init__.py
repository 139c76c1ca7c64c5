"""What others have published: rows, tables, released configs, expected AP, and causes of a shortfall."""
