"""Recipes: reading and writing text (file.py), finding mistakes (check.py), describing the keys (schema.py).
`vicjoint.config` is the module to use."""
