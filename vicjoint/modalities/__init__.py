"""A modality turns the raw tensors that workers hand over (uint8 where it can be: four times less to move)
into the view an encoder expects, on the encoder's device. One file per family of modalities."""

from vicjoint.modalities import audio, drawing, features, image, microscope, molecule, protein, text
