"""Augmentations: of images, alone and in the lists that recipes write, and of waveforms."""

from vicjoint.transforms import images, waveforms
