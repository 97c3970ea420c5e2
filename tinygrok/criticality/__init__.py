"""Signal propagation: theory at infinite width, Jacobians of finite networks, and initialisation
tuned to criticality."""
