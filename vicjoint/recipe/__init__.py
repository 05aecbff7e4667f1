"""Recipes: reading and writing text (file.py), finding mistakes (check.py), describing the keys (schema.py).
`vicjoint.recipe` is the module to use."""
