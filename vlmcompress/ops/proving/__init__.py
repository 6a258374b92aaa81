"""Kernels that prove themselves on the card that they run on.

trials    inputs on which each op can be judged, whatever the order in which a card adds
proof     kernel and torch on a trial: the same results? which is faster?
verdicts  what was found, in memory and in the cache folder
decision  the question of an op: does my kernel run here?
"""
