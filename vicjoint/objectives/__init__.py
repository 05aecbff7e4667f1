"""What training minimises. `loss, terms = objective(z_a, z_b, group)`; terms are weighted, detached and sum
to the loss.

Value and gradient are computed together, in float32 whatever autocast says, on the whole global batch
whatever the number of processes: W processes give the loss and the gradients of one process with the union
batch.
"""

from vicjoint.objectives.barlow_twins import BarlowTwins
from vicjoint.objectives.infonce import InfoNCE
from vicjoint.objectives.infonce_distance import InfoNCEDistance
from vicjoint.objectives.sigreg import SIGReg
from vicjoint.objectives.straightened import Straightened
from vicjoint.objectives.vicreg import VICReg
from vicjoint.objectives.vicregl import VICRegL

__all__ = ["BarlowTwins", "InfoNCE", "InfoNCEDistance", "SIGReg", "Straightened", "VICReg", "VICRegL"]
