"""The networks that pretraining, the reading of weights and the benchmarks share."""
