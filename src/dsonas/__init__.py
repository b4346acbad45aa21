"""dsonas: neural architecture search by direct sparse optimisation."""
