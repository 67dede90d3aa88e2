"""How complex an instruction is: features of its syntax, a score from them, and tiers of the score.

Needed to prepare and to look at data; a fitted router reads hidden states alone, so serving needs none of it.
"""
