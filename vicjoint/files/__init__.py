"""From a record of a source to pixels and waveforms: which file or value it means (cells.py), images, sound.
Videos: vicjoint.video."""
