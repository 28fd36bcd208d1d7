"""The report's sections, one per method."""

__all__: list[str] = []
