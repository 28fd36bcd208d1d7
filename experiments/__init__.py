"""Experiments with tinyjax: real data, plain flax models, stock train steps, honest measurements.

Run them with ``python -m experiments <octo|sgq|pass|demo>``; see ``python -m experiments --help``.
"""

__all__: list[str] = []
