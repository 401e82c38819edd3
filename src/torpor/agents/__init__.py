"""Agents that come with torpor."""
