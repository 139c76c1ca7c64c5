"""What others have published: methods, tables, released configs, expected AP, and causes of a shortfall."""
