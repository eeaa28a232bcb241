"""The loop: what happens next in a campaign, and what carries it out."""
