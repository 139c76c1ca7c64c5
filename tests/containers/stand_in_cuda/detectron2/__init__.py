"""A stand-in for Detectron2; its one operator is compiled for CUDA."""
