"""The networks that pretraining, the weight readers and the benchmarks share."""
