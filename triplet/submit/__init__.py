"""Stages on a cluster: one frozen description of jobs, which three small modules write and submit."""
