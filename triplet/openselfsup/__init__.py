"""OpenSelfSup as a second engine of the pretrain stage: the method as a plug-in, and the zoo's baselines.

Nothing here is imported by the kit's own trainer.
"""
