"""Developer tools, not part of the package: training, benchmarks, generated pages."""
