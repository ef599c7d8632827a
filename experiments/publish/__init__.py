"""How results appear: style, names, provenance, tables."""
