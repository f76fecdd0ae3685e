"""Recipes that start training: torchrun on one node and on several, SLURM, containers; and `python -m pretrain.launch`."""
