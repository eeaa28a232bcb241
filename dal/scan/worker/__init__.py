"""The part of a scan that runs on another machine: proving that it can, scoring spans, keeping their features.

It imports nothing of the coordinator's part beside it but the pure `plan` and `merge`. A pass in the coordinator's own
process calls the same `kernel.score_span`: that is the specification.
"""
