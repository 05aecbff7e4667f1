"""From a recipe to a run folder: what a recipe describes, built (build), the loop and what it calls on the
way (loop, log, nonfinite, stopping), and what lies in the folder (folder, checkpoint, resuming)."""
