"""Typed clients of the four services; they implement the ports of the search loop over the network."""
