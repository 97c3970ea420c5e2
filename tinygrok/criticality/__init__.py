"""Signal propagation: theory at infinite width, Jacobians of networks, tuning to criticality."""
