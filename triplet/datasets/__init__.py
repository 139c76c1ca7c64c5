"""The user's own annotated images: the layouts that tools export, read into one normal form.

The normal form is a COCO annotation file for each part, ``train`` and ``val``, and the folder of its
images. ``triplet.annotations`` checks it, and the finetuning reads it like COCO 2017.
"""

VAL_SHARE = 0.2
"""Share of the images that are held out where the data has no validation part and the user names none."""
