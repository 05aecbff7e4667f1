"""The columns of a molecule's graph, which its modality writes and its encoders read."""

# What the columns of a molecule's atoms and bonds are, and how many categories each has; the last category of
# a column: masked
ATOM_CATEGORIES = {
    "atomic_number": 120,
    "degree": 12,
    "charge": 12,
    "hydrogens": 10,
    "aromatic": 3,
    "in_ring": 3,
    "chirality": 4,
    "hybridisation": 8,
}
BOND_CATEGORIES = {"kind": 6, "conjugated": 3, "in_ring": 3, "stereo": 4}
