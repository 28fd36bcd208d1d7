"""The claims of the thesis, each with a verdict that its figures decide."""

from experiments.claims import octo, sgq, skip, thesis
from experiments.claims.base import Claim, Finding, Row, judged

__all__ = ["CLAIMS", "Claim", "Finding", "Row", "judged"]

CLAIMS: tuple[Claim, ...] = (*octo.CLAIMS, *sgq.CLAIMS, *skip.CLAIMS, *thesis.CLAIMS)
