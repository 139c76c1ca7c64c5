"""Stages on a cluster: one frozen description of jobs, which three small modules write and submit."""

SLURM_HOURS = 24.0
"""Time limit of a job where the user names none: Slurm needs one."""
CPUS_PER_GPU = 8
"""Number of cores that loading and augmentation for one GPU keep busy, approximately."""
