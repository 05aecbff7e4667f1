"""A run folder -> one self-contained page: `write_report` in page.py, `python -m vicjoint.report RUN`."""
