"""Examine a cluster, a pool and a campaign: facts that are collected, and findings that say what to change."""
