"""Measurements of kernels, selection and whole shapes."""
