"""NumPy oracles, written from the papers; they import neither jax nor tinyjax."""
