"""The contract: types, protocols, errors, checks and the geometry that everything shares; torch and the standard library only."""
