"""Fleets in virtual time: many edges, their links, and the cloud that they share."""
