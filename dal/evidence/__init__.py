"""Evidence: what the answers tell of the labels, of the annotators, of the model, and of when to stop.

Pure functions of values: no database, file, clock or cluster.
"""
