"""What the originals compute, written as their code does it: with masks, loops and tensors of every pair.

Written anew from their formulas, for timing only. Every function takes our loss first, for its options and so that both
sides use the same layers, then what our loss is given.
"""
