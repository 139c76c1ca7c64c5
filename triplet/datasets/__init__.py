"""People's own annotated images: the layouts that tools export, read into one normal form.

The normal form is a COCO annotation file for each part, ``train`` and ``val``, and the folder that its file
names are below. ``triplet.annotations`` checks it, and the finetuning reads it as it reads COCO 2017.
"""
