"""Published knowledge: methods, tables, released configs, expected AP, and causes of a shortfall."""
